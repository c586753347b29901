# Copyright: (c) 2026, the lmfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation of the action plugin of the same name. Its options are the C(lmfleet_*) variables of an inventory."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_plan
short_description: Check an inventory as a whole and work out what each host is to run
version_added: "0.1.0"
author:
  - The lmfleet contributors (@lmfleet)
description:
  - Reads the variables below from every host of the inventory groups C(macs) and C(gateways),
    checks them one by one and against each other, and reports every problem at once.
    It runs on the controller, connects to no host and changes nothing.
  - The options listed here are inventory variables. The task itself takes none.
  - Variables that start with C(lmfleet_) or with the name of a role of this collection, and that nothing here knows,
    are reported as well, with the name that was probably meant.
  - What works but is probably not as meant is told as a warning.
  - The whole inventory is planned also when a run is narrowed with C(--limit),
    so that a deployment keeps its id and gateways keep their routes.
attributes:
  check_mode:
    description: Whether the task can run in check mode.
    support: full
  diff_mode:
    description: Whether the task returns a diff.
    support: none
options:
  lmfleet_models:
    description:
      - The catalogue. Each key is a model's name, the one that clients ask the gateway for.
      - Declare it once for the whole fleet, in C(group_vars/all.yml).
    type: dict
    required: true
    suboptions:
      NAME:
        description:
          - A model. Letters, digits, C(.), C(_) and C(-); at most 64 characters;
            unique also when case and a final C(-gguf) are ignored, as LM Studio does.
        type: dict
        suboptions:
          source:
            description:
              - Where the model file comes from.
                Exactly one of O(lmfleet_models.NAME.source.huggingface), O(lmfleet_models.NAME.source.url),
                O(lmfleet_models.NAME.source.path) and O(lmfleet_models.NAME.source.catalog).
            type: dict
            required: true
            suboptions:
              huggingface:
                description:
                  - A repository on Hugging Face, as C(publisher/repository).
                    Needs O(lmfleet_models.NAME.source.file) or O(lmfleet_models.NAME.source.files).
                type: str
              file:
                description:
                  - The file inside the repository, or the one that comes with a model of the catalogue.
                type: str
              revision:
                description:
                  - Branch, tag or commit of the repository.
                type: str
                default: main
              url:
                description:
                  - Address of the file; with O(lmfleet_models.NAME.source.files) that of the folder they are in.
                type: str
              path:
                description:
                  - Absolute path of the file on the controller; with O(lmfleet_models.NAME.source.files) that of the
                    folder they are in. It is sent to each Mac that lacks it; with O(lmfleet_model_cache) only to that
                    one, which serves it to the others.
                  - The file has to be there in every run, also in one that sends nothing.
                type: str
              catalog:
                description:
                  - A model of LM Studio's catalogue, as C(publisher/name), or C(name) for a recommended one.
                    C(lms get) fetches it on the Mac; after that LM Studio must know a model with exactly this key.
                    Needs O(lmfleet_models.NAME.source.file) or O(lmfleet_models.NAME.source.files), with the names
                    that the files have there.
                  - End it in C(@) and a quantisation, such as C(qwen/qwen3-4b@q4_k_m). Otherwise LM Studio takes the
                    one that it recommends for the Mac, which may be another on the next.
                  - The LM Studio that fetches it takes one of the five control ports, so the Mac can have four
                    instances. Its size is not known beforehand; with O(lmfleet_models.NAME.memory.weights_mb) the disk
                    is checked for that, otherwise only for not being full.
                  - Only its files are taken. What else the catalogue says of it, such as settings for sampling, is not.
                type: str
              sha256:
                description:
                  - SHA-256 of the file, 64 hexadecimal digits. Hugging Face shows it on the file's page.
                    Required unless there are O(lmfleet_models.NAME.source.files).
                type: str
              files:
                description:
                  - The files of a model that has several, all of them in one folder on the Mac.
                    The parts of a split GGUF file, a vision projector C(mmproj-….gguf) beside the weights,
                    or everything that an MLX model consists of, C(config.json) included.
                  - Instead of O(lmfleet_models.NAME.source.file) and O(lmfleet_models.NAME.source.sha256).
                type: list
                elements: dict
                suboptions:
                  file:
                    description:
                      - The file inside the repository, or below O(lmfleet_models.NAME.source.url)
                        or O(lmfleet_models.NAME.source.path), or one that comes with a model of the catalogue.
                    type: str
                    required: true
                  sha256:
                    description:
                      - SHA-256 of the file, 64 hexadecimal digits.
                    type: str
                    required: true
          type:
            description:
              - What the model does.
            type: str
            choices: [llm, embedding]
            default: llm
          memory:
            description:
              - What is known of the memory that the model takes. Goes before what is read from its file,
                and makes it possible to check a Mac before the file is there.
              - The KV cache is reckoned from O(lmfleet_models.NAME.memory.layers),
                O(lmfleet_models.NAME.memory.kv_heads) and O(lmfleet_models.NAME.memory.head_dim), all three together.
            type: dict
            default: {}
            suboptions:
              weights_mb:
                description:
                  - Size of the weights in MiB; for most models that of the file.
                type: int
              layers:
                description:
                  - Layers that pay attention to the whole context.
                type: int
              kv_heads:
                description:
                  - Heads of keys and values in each of them.
                type: int
              head_dim:
                description:
                  - Length of one head.
                type: int
              runtime_mb:
                description:
                  - What a loaded copy takes beside weights and KV cache, in MiB. 1024 when not set.
                type: int
          gateway:
            description:
              - How the gateways treat requests for the model.
            type: dict
            default: {}
            suboptions:
              fallbacks:
                description:
                  - Models that answer instead, in this order, when no deployment of this one does.
                  - Gateways that keep their deployments in a database (C(gateway_deployments_registry=api)) take these
                    and O(lmfleet_models.NAME.gateway.context_window_fallbacks) from C(litellm_router_settings) only.
                type: list
                elements: str
                default: []
              context_window_fallbacks:
                description:
                  - Models that answer instead when a prompt is longer than C(load.context_length) of this one.
                type: list
                elements: str
                default: []
              parallel_allowance:
                description:
                  - How many requests a gateway lets wait at a deployment, beyond those that it serves at a time
                    (C(load.parallel)), while another deployment of the model has room. Where none has, requests queue
                    at the deployments; they are never refused for that.
                type: int
                default: 2
              num_retries:
                description:
                  - How many times a request is tried again, at another deployment if there is one. As the router
                    settings of the gateway say, V(2), when it is not set.
                type: int
              cooldown_time:
                description:
                  - Seconds that a deployment gets no requests after its second failure within C(cooldown_time) of the
                    router (C(allowed_fails=1)). As the router settings of the gateway say, V(30), when it is not set.
                  - Each worker of a gateway counts for itself, unless there is a Redis (C(litellm_redis_url)).
                type: float
              timeout:
                description:
                  - Seconds an answer may take. As C(litellm_request_timeout) says, V(600), when it is not set.
                type: float
              stream_timeout:
                description:
                  - Seconds until a stream must have begun. As C(litellm_stream_timeout) says, V(120), when it is not
                    set.
                type: float
              rpm:
                description:
                  - Requests in a minute that each deployment of the model takes, at least 1. More go to its other
                    deployments, and are refused with HTTP 429 when none is left. Gateways with the same Redis
                    (C(litellm_redis_url)) share the limit.
                type: int
              tpm:
                description:
                  - Tokens in a minute, at least 1, after which a deployment of the model gets no more requests, in the
                    same way as for C(rpm).
                type: int
          load: &load
            description:
              - How the model is loaded. What is not given stays at LM Studio's own default.
            type: dict
            default: {}
            suboptions:
              context_length:
                description:
                  - Context in tokens, at least 1.
                    With O(lmfleet_models.NAME.load.unified_kv_cache) it is a pool that the parallel requests share.
                type: int
              parallel:
                description:
                  - Requests that are served at the same time, 1 to 1023. More of them queue. Not for embeddings.
                type: int
              unified_kv_cache:
                description:
                  - Whether the parallel requests share one context.
                    When V(false), each has its own, at its own cost in memory.
                type: bool
              gpu:
                description:
                  - Share of the layers on the GPU, V(max), V(off), or a number from 0 to 1.
                type: str
              offload_kv_cache_to_gpu:
                description:
                  - Whether the KV cache is kept in GPU memory.
                type: bool
              flash_attention:
                description:
                  - Flash attention. Needed for O(lmfleet_models.NAME.load.v_cache_quantization). GGUF only.
                type: bool
              k_cache_quantization: &cache_type
                description:
                  - Type of the K or V half of the KV cache. V(off) is LM Studio's own, 16 bits a value. GGUF only.
                type: str
                choices: ["off", f32, f16, q8_0, q5_1, q5_0, q4_1, q4_0, iq4_nl]
              v_cache_quantization: *cache_type
              mlx_kv_cache_bits:
                description:
                  - Bits per value of the KV cache of an MLX model. V(0) leaves it as it is. MLX only.
                type: int
                choices: [0, 2, 3, 4, 6, 8]
              mlx_kv_cache_group_size:
                description:
                  - Values that share one scale. Needs O(lmfleet_models.NAME.load.mlx_kv_cache_bits).
                type: int
                choices: [32, 64, 128]
              mlx_kv_cache_quantized_start:
                description:
                  - Tokens at the start of a context from which on the cache is quantised.
                    Needs O(lmfleet_models.NAME.load.mlx_kv_cache_bits).
                type: int
              cpu_threads:
                description:
                  - Number of CPU threads, or as many as the Mac has cores of a kind,
                    V(performance_cores), V(efficiency_cores) or V(all_cores). GGUF only.
                type: str
              eval_batch_size:
                description:
                  - Tokens of a prompt that are processed at a time. GGUF only.
                type: int
              physical_batch_size:
                description:
                  - Tokens that are computed in one go inside a batch. GGUF only.
                type: int
              auto_fit:
                description:
                  - Whether LM Studio may change settings to make the model fit. GGUF only.
                type: bool
              keep_model_in_memory:
                description:
                  - Whether the model may not be paged out. GGUF only.
                type: bool
              mmap:
                description:
                  - Whether the file is mapped rather than read. GGUF only.
                type: bool
              num_experts:
                description:
                  - Experts used per token. Only for mixture-of-experts models.
                type: int
              draft_mtp:
                description:
                  - Speculative decoding with the prediction layers that some models bring along. GGUF only.
                type: bool
              draft_simple:
                description:
                  - Speculative decoding with O(lmfleet_models.NAME.load.draft_model).
                    V(true) where that is set, unless O(lmfleet_models.NAME.load.draft_mtp) is. GGUF only.
                type: bool
              draft_model:
                description:
                  - Name of another model of O(lmfleet_models), a small one, that drafts tokens ahead.
                    Its file is fetched along, it need not be served. GGUF only.
                type: str
              draft_max_tokens:
                description:
                  - Most tokens that are drafted at a time.
                type: int
              draft_min_tokens:
                description:
                  - Fewest tokens worth a draft.
                type: int
              draft_min_continue_probability:
                description:
                  - How likely a drafted token must be for the draft to go on, 0 to 1.
                type: float
  lmfleet_instances:
    description:
      - The LM Studio servers of a Mac, at most five. Each has a port, a home and a launchd job of its own.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description:
          - Name of the instance, unique on its Mac. Lower-case letters, digits and C(-); at most 32 characters.
        type: str
        required: true
      port:
        description:
          - Port of the server, 1024 to 65535, unique on its Mac.
        type: int
        required: true
      status_port:
        description:
          - Port at which the instance publishes its queues for the queue guard, read-only, at the address of the
            server. 1000 above O(lmfleet_instances[].port) when it is not set. Not used without O(lmfleet_queue_guard).
        type: int
      embeddings_only:
        description:
          - Whether the instance serves embeddings and nothing else. As soon as one instance of the fleet does,
            embedding models may be on such instances only, so that embeddings never wait for a chat, nor the reverse.
        type: bool
        default: false
      runtimes:
        description:
          - Inference runtimes of this instance, name to version in quotes, such as
            C(llama.cpp-mac-arm64-apple-metal-advsimd) to C("2.27.1"). Those of all instances stand in
            C(lmstudio_instances_runtimes), see the role C(lmfleet.mac.lmstudio_instances).
        type: dict
      models:
        description:
          - What the instance serves.
        type: list
        elements: dict
        required: true
        suboptions:
          name:
            description:
              - Name of a model of O(lmfleet_models).
            type: str
            required: true
          copies:
            description:
              - How many times the model is loaded, 1 to 16. Each copy is a deployment of its own.
            type: int
            default: 1
          weight:
            description:
              - Share of the model's requests that each copy gets, relative to other deployments of the model, V(1)
                when it is not set. V(0) is for none while there are others.
            type: float
          order:
            description:
              - Copies with a higher number get requests only when those with a lower one are full or not to be had.
                V(1) when it is not set and other deployments of the model have one.
            type: int
          load: *load
  lmfleet_address:
    description:
      - Address or name at which the gateways reach this Mac.
        C(ansible_host), or the inventory name, when it is not set.
    type: str
  lmfleet_bind_address:
    description:
      - Address that the instances of this Mac listen on.
        Where it is not set, V(127.0.0.1) if this Mac is the only gateway,
        otherwise O(lmfleet_address) if that is an address rather than a name.
      - LM Studio asks clients for no token unless it is told to (O(lmfleet_api_tokens)). Choose an address of a
        private network.
    type: str
  lmfleet_api_tokens:
    description:
      - API tokens (C(LM_API_TOKEN)) of the instances of this Mac whose LM Studio asks for one, instance name to token.
        Put them into a vault. The gateways send them, and so does this collection when it asks an instance.
      - LM Studio makes tokens, and is told to ask for them, in its desktop app only. This collection can do neither.
    type: dict
    default: {}
  lmfleet_launchd_domain:
    description:
      - V(gui) makes the instances launch agents, which run while their user is logged in at the screen.
        V(system) makes them launch daemons, which run from boot and need root to be installed.
    type: str
    choices: [gui, system]
    default: gui
  lmfleet_root:
    description:
      - Folder on the Macs that holds all that this collection makes.
        C(.lmfleet) in the home of the login user when it is not set.
    type: str
  lmfleet_memory_policy:
    description:
      - What to do where models cannot fit into the memory of a Mac. V(refuse) stops the run before anything is changed,
        V(warn) says so and goes on.
    type: str
    choices: [refuse, warn]
    default: refuse
  lmfleet_memory_reserve_mb:
    description:
      - Memory of a Mac in MiB that models must leave to macOS and other programs, whatever the GPU may use.
    type: int
    default: 4096
  lmfleet_local_first:
    description:
      - Whether this gateway sends requests to deployments on its own Mac first, and to other Macs when those are full
        or not to be had.
      - Not for several gateways that keep their deployments in a database (C(gateway_deployments_registry=api)), where
        an order holds for all of them.
    type: bool
    default: false
  lmfleet_queue_guard:
    description:
      - Whether this gateway runs the queue guard, see P(lmfleet.mac.queue_guard#role). It takes a deployment whose
        queue grows too long out of service, and back when it has recovered. Where any gateway has it, every instance
        publishes its queues at O(lmfleet_instances[].status_port).
      - Gateways that keep their deployments in a database (C(gateway_deployments_registry=api)) have none.
    type: bool
    default: true
  lmfleet_all_gateways:
    description:
      - Whether a run stops when one of several gateways cannot be reached. Otherwise that one is left out, with all
        that is on its host, the run goes on with the others, and tells so at its end.
    type: bool
    default: false
  lmfleet_model_cache:
    description:
      - Inventory name of a Mac that fetches every model of the fleet from the internet and serves the files to the
        other Macs, which then need no internet. Each Mac still checks every file against its SHA-256.
      - The Mac serves its models folder, and nothing else, read-only to anyone who reaches
        O(lmfleet_model_cache_port) of it.
      - It has to be up in every run, also in one that is narrowed with C(--limit). To do without it once, run with
        C(-e lmfleet_model_cache=).
      - When it is no longer set, the next run of that Mac ends the serving.
    type: str
  lmfleet_model_cache_port:
    description:
      - Port at which that Mac serves the files, 1024 to 65535.
    type: int
    default: 8765
  lmfleet_prune_models:
    description:
      - Whether model files are removed from a Mac that are no longer declared for it.
        Only files that this collection has fetched, and none of a model that is loaded on any instance.
    type: bool
    default: false
  lmfleet_batch:
    description:
      - How many Macs are changed at the same time, a number or a share of them, where a change interrupts what they
        serve. A batch never leaves a model group less than O(lmfleet_min_capacity).
    type: str
    default: 25%
  lmfleet_canary:
    description:
      - Whether one Mac is changed by itself before the first batch.
    type: bool
    default: true
  lmfleet_canary_bake_seconds:
    description:
      - How many seconds that Mac then serves before the others follow. If more of its requests fail meanwhile, or the
        first token takes longer, than at the other deployments of the model group, it gets back what it had, and the
        run stops. V(0) to go on at once.
    type: int
    default: 30
  lmfleet_rollback:
    description:
      - What gets back what it had when a change fails. V(mac), the Mac that failed; those that were changed before stay
        as they are. V(fleet), also all others that the same run has changed. Instances that were new stay, and those
        that were removed stay removed. With C(gateway_deployments_registry=api) it is always V(mac).
    type: str
    choices: [mac, fleet]
    default: mac
  lmfleet_ignore_unreachable:
    description:
      - Whether a run goes on without the Macs that cannot be reached at its start. What the gateways know of them stays
        as it is; they notice by themselves what does not answer. Otherwise a run stops before it changes anything.
    type: bool
    default: false
  lmfleet_take_over:
    description:
      - Whether a run goes on although another controller has claimed the fleet for a roll-out. Only where that run is
        known to be dead. A run from the same controller needs no such leave.
    type: bool
    default: false
  lmfleet_min_capacity:
    description:
      - How many of its deployments each model group keeps while instances are changed, a number or a share. Where it is
        not set, all but those of one Mac, and at least one. V(0) promises nothing, for a fleet that nobody uses now.
    type: str
  lmfleet_allow_downtime:
    description:
      - Whether a model group may be without any deployment while its instance is changed. With a single Mac there is no
        other way. Otherwise such a run stops before anything is changed.
    type: bool
    default: false
  lmfleet_drain_timeout:
    description:
      - How many seconds requests that run may take to end, before an instance is changed. A run fails rather than cut
        them off.
    type: int
    default: 300
  lmfleet_lock_timeout:
    description:
      - How many seconds a run waits for another run against the same fleet to end, before it fails.
    type: int
    default: 30
"""

EXAMPLES = r"""
- name: Check the inventory and work out what each host is to run
  hosts: macs:gateways
  gather_facts: false
  tasks:
    - name: Plan the fleet
      lmfleet.mac.fleet_plan:
      run_once: true
      register: fleet

    - name: Show what this host is to run
      ansible.builtin.debug:
        var: fleet.hosts[inventory_hostname]
"""

RETURN = r"""
hosts:
  description: What each host is to run, by inventory name.
  returned: success
  type: dict
  contains:
    instances:
      description:
        - The instances with name, port, address, url, status_port, status_url,
          and per loaded copy of a model its name, identifier, type, path, sha256, load settings,
          drafting model and deployment id.
      type: list
      elements: dict
    models:
      description: The model files that the host needs, each with the model's name, path, url or local, and sha256.
      type: list
      elements: dict
    domain:
      description: The launchd domain of the instances.
      type: str
    domains:
      description: Every launchd domain that the host will use.
      type: list
      elements: str
    memory:
      description:
        - C(policy), C(reserve_mb), C(gpu_limit_mb) and C(declared) as the inventory has them,
          and C(wanted), which role P(lmfleet.mac.mac_host#role) asks the Mac for.
      type: dict
    guard:
      description: Whether the host runs the queue guard.
      type: bool
    deployments:
      description: What the gateway of the host routes to. Only of gateways.
      type: list
      elements: dict
    prune_models:
      description: Whether model files that are no longer declared are removed.
      type: bool
    ports:
      description: What will be listened on, each with port, address, label and domain of the launchd job, and use.
      type: list
      elements: dict
deployments:
  description:
    - Every deployment of the fleet, with id, model_group, model, mode, api_base, host, instance, parallel, and how it
      gets its share of the requests.
  returned: success
  type: list
  elements: dict
model_groups:
  description: The models that are served, each with name, fallbacks and context_window_fallbacks.
  returned: success
  type: list
  elements: dict
gateways:
  description: Inventory names of the gateways.
  returned: success
  type: list
  elements: str
token_hosts:
  description: Inventory names of the Macs with instances that ask for an API token. The tokens are not in the plan.
  returned: success
  type: list
  elements: str
model_cache:
  description:
    - The Mac that serves models to the others, with host, root, address, port, launchd domain and the files of the
      whole fleet. Empty when there is none.
  returned: success
  type: dict
lock_timeout:
  description: How many seconds to wait for another run.
  returned: success
  type: int
problems:
  description: What is wrong, one line each.
  returned: failure
  type: list
  elements: str
"""

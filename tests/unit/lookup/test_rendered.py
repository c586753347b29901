# SPDX-License-Identifier: GPL-3.0-or-later
"""The lookup rendered: one result per item, with the texts of each template and the keys that were asked for."""

from __future__ import annotations

QUERY = (
    "query('lmfleet.mac.rendered', items, item_name='mac', keep=['name'], "
    "templates={'text': 'one.j2', 'port': 'two.j2'})"
)
SHOW = {
    "ansible.builtin.debug": {"msg": "{{ " + QUERY + " | to_json }}"},
    "vars": {"items": [{"name": "a", "port": 1}, {"name": "b", "port": 2}]},
    "run_once": True,
}


def test_each_item_is_rendered_with_each_template(controller, inventory, tmp_path):
    (tmp_path / "one.j2").write_text("{{ mac.name | upper }} on {{ inventory_hostname }}")
    (tmp_path / "two.j2").write_text("port {{ mac.port }}")
    output = controller(inventory, [SHOW]).communicate(timeout=60)[0].replace("\\", "")
    assert (
        '[{"name": "a", "text": "A on mac-1", "port": "port 1"}, {"name": "b", "text": "B on mac-1", "port": "port 2"}]'
        in output
    )


def test_a_template_that_is_not_there_is_an_error(controller, inventory, tmp_path):
    (tmp_path / "one.j2").write_text("x")
    run = controller(inventory, [SHOW])
    output = run.communicate(timeout=60)[0]
    assert run.returncode != 0
    assert "two.j2" in output

// SPDX-License-Identifier: GPL-3.0-or-later
// Stands for Prisma's query engine, a program that Prisma downloads: the same engine, as Prisma builds it for
// WebAssembly, behind the HTTP interface of the program. For tests only.
//
//   query_engine.cjs MODULES [--version | -p PORT ...]
//
// MODULES is the folder node_modules. The environment is what Prisma's client for Python gives the program.
"use strict";

const fs = require("node:fs");
const http = require("node:http");
const path = require("node:path");

const [modules, ...options] = process.argv.slice(2);
const load = (name) => require(path.join(modules, name));

if (options.includes("--version")) {
  console.log(`query-engine ${load("@prisma/engines-version").enginesVersion}`);
  process.exit(0);
}

const { PrismaPg } = load("@prisma/adapter-pg");
const { bindAdapter } = load("@prisma/driver-adapter-utils");
const { Pool } = load("pg");
const datamodel = fs.readFileSync(process.env.PRISMA_DML_PATH, "utf8");
const { translate } = require("./graphql_to_json.cjs")(load("graphql"), datamodel);

const overwritten = JSON.parse(process.env.OVERWRITE_DATASOURCES || "[]");
const url = new URL(overwritten.length ? overwritten[0].url : process.env.DATABASE_URL);
const pool = new Pool({
  host: url.hostname,
  port: Number(url.port || 5432),
  user: decodeURIComponent(url.username),
  password: decodeURIComponent(url.password),
  database: url.pathname.slice(1),
  max: Number(url.searchParams.get("connection_limit") || 5),
  connectionTimeoutMillis: 1000 * Number(url.searchParams.get("connect_timeout") || 5),
});
// A connection that the server ends while nothing is asked is no failure; the next question opens another.
pool.on("error", () => {});

const adapter = bindAdapter(new PrismaPg(pool));
const LOST = ["ECONNREFUSED", "ECONNRESET", "EPIPE", "57P01", "57P02", "57P03"];

function unreachable(error) {
  return LOST.includes(error.code) || /terminated|timeout exceeded/.test(error.message);
}

// What the program says of a database that is down is P1001; the engine itself knows only that JavaScript failed.
function named(reply) {
  for (const entry of reply.errors || []) {
    const facing = entry.user_facing_error || {};
    if (facing.error_code !== "P2036") continue;
    const { error } = adapter.errorRegistry.consumeError(facing.meta.id);
    entry.error = error.message;
    if (unreachable(error)) {
      facing.error_code = "P1001";
      facing.message = `Can't reach database server at \`${url.hostname}\`:\`${url.port}\``;
      facing.meta = { database_host: url.hostname, database_port: url.port };
    }
  }
  return reply;
}

async function start() {
  const runtime = load("@prisma/client/runtime/query_engine_bg.postgresql.js");
  const binary = fs.readFileSync(path.join(modules, "@prisma/client/runtime/query_engine_bg.postgresql.wasm"));
  const { instance } = await WebAssembly.instantiate(binary, { "./query_engine_bg.js": runtime });
  runtime.__wbg_set_wasm(instance.exports);
  const engine = new runtime.QueryEngine(
    { datamodel, logLevel: "error", logQueries: false },
    () => {},
    adapter,
  );
  const trace = JSON.stringify({});
  await pool.query("SELECT 1"); // the program connects before it listens
  await engine.connect(trace);
  return async (method, target, body, transaction) => {
    if (target === "/status") return { status: "ok" };
    if (target === "/transaction/start") return named(JSON.parse(await engine.startTransaction(body, trace)));
    const [, , id, end] = target.split("/");
    if (end === "commit") return named(JSON.parse(await engine.commitTransaction(id, trace)));
    if (end === "rollback") return named(JSON.parse(await engine.rollbackTransaction(id, trace)));
    if (method !== "POST" || target !== "/") return undefined;
    const { question, answer } = translate(JSON.parse(body));
    return answer(named(JSON.parse(await engine.query(JSON.stringify(question), trace, transaction))));
  };
}

function listen(answer) {
  const server = http.createServer((request, response) => {
    const blocks = [];
    request.on("data", (block) => blocks.push(block));
    request.on("end", async () => {
      const send = (status, text) => {
        response.writeHead(status, { "Content-Type": "application/json" });
        response.end(text);
      };
      try {
        const body = Buffer.concat(blocks).toString();
        const reply = await answer(request.method, request.url, body, request.headers["x-transaction-id"]);
        if (reply === undefined) send(404, "{}");
        else send(200, JSON.stringify(reply));
      } catch (error) {
        send(500, JSON.stringify({ errors: [{ error: String(error) }] }));
      }
    });
  });
  server.listen(Number(options[options.indexOf("-p") + 1]), "localhost");
}

// A worker that is killed cannot end its engine.
const parent = process.ppid;
setInterval(() => process.ppid === parent || process.exit(1), 1000);
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => process.exit(0));

start().then(listen, (error) => {
  console.error(JSON.stringify({ is_panic: false, message: String(error), error_code: "P1001" }));
  process.exit(1);
});

// SPDX-License-Identifier: GPL-3.0-or-later
// Prisma's client for Python asks in GraphQL. The engine for WebAssembly understands Prisma's JSON protocol only.
"use strict";

const ACTION =
  /^(findMany|findFirst|findUnique|createOne|createMany|updateOne|updateMany|upsertOne|deleteOne|deleteMany|aggregate|groupBy)(.*?)(OrThrow)?$/;

// Model to the names of its fields of type Json: in GraphQL, only the schema tells such a value from other strings.
function jsonFields(schema) {
  const models = [...schema.matchAll(/^model\s+(\w+)\s*\{([^}]*)\}/gm)];
  return Object.fromEntries(
    models.map(([, model, body]) => [model, [...body.matchAll(/^\s*(\w+)\s+Json\b/gm)].map((match) => match[1])]),
  );
}

module.exports = ({ parse }, schema) => {
  const json = jsonFields(schema);
  const entries = (nodes, value) => Object.fromEntries((nodes || []).map((node) => [node.name.value, value(node)]));

  function literal(node) {
    switch (node.kind) {
      case "IntValue":
        return Number.isSafeInteger(Number(node.value)) ? Number(node.value) : { $type: "BigInt", value: node.value };
      case "FloatValue":
        return Number(node.value);
      case "NullValue":
        return null;
      case "ListValue":
        return node.values.map(literal);
      case "ObjectValue":
        return entries(node.fields, (field) => literal(field.value));
      default:
        return node.value; // strings, booleans, and the names of enumerations
    }
  }

  const args = (field) => entries(field.arguments, (argument) => literal(argument.value));
  const selection = (field) =>
    entries(field.selectionSet && field.selectionSet.selections, (inner) =>
      inner.selectionSet ? { arguments: args(inner), selection: selection(inner) } : true,
    );

  function withJson(value, fields) {
    if (Array.isArray(value)) return value.map((inner) => withJson(inner, fields));
    if (value === null || typeof value !== "object") return value;
    const marked = ([key, inner]) =>
      fields.includes(key) && typeof inner === "string"
        ? [key, { $type: "Json", value: inner }]
        : [key, withJson(inner, fields)];
    return Object.fromEntries(Object.entries(value).map(marked));
  }

  function question(text) {
    const [field] = parse(text).definitions[0].selectionSet.selections;
    const [, action, model, orThrow] = ACTION.exec(field.name.value) || [null, field.name.value];
    const query = { arguments: withJson(args(field), json[model] || []), selection: selection(field) };
    return {
      name: field.alias ? field.alias.value : field.name.value,
      asked: { modelName: model, action: action + (orThrow || ""), query },
    };
  }

  function plain(value) {
    if (Array.isArray(value)) return value.map(plain);
    if (value === null || typeof value !== "object") return value;
    if ("$type" in value) return value.value;
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, plain(inner)]));
  }

  const answer = (reply, name) =>
    reply.data ? { ...reply, data: { [name]: plain(Object.values(reply.data)[0]) } } : reply;

  function translate(body) {
    if (!body.batch) {
      const { name, asked } = question(body.query);
      return { question: asked, answer: (reply) => answer(reply, name) };
    }
    const questions = body.batch.map((entry) => question(entry.query));
    return {
      question: { batch: questions.map(({ asked }) => asked), transaction: body.transaction ? {} : undefined },
      answer: (reply) =>
        reply.batchResult
          ? { batchResult: reply.batchResult.map((one, number) => answer(one, questions[number].name)) }
          : reply,
    };
  }

  return { translate };
};

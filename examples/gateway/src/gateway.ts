// A service that takes orders over HTTP. An order and its job are one transaction: there is never one without the
// other. Whoever asked is told when the job ends, because Postgres tells this service.
//
//   POST /orders           {"customer": "ann", "job": {"command": "…"}}   → 201 {"order", "job_id"}, or 400 with the field
//   GET /orders/ID         how it stands, with what the job left
//   GET /orders/ID/events  server-sent events: one, when the job has ended
//   DELETE /orders/ID      cancels it
//
// DATABASE_URL is a login of the role rythmiq_enqueue, which sees its own jobs alone; PORT is where it listens.
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import pg from "pg";
import type { Job } from "./job.js";

interface Status {
  order_id: string;
  job_id: string;
  state: "BLOCKED" | "QUEUED" | "RUNNING" | "RETRYING" | "SUCCEEDED" | "FAILED" | "CANCELLED";
  exit_code: number | null;
  error_message: string | null;
  artifacts: { name: string; uri: string; bytes: number; sha256: string }[];
}

const ENDED = new Set(["SUCCEEDED", "FAILED", "CANCELLED"]);
const INVALID = "22023"; // SQLSTATE of a job with a fault
const connectionString = process.env.DATABASE_URL;
const pool = new pg.Pool({ connectionString });
const waiting = new Map<string, Set<() => void>>();

async function order(customer: string, job: Job): Promise<{ order: string; job_id: string }> {
  const client = await pool.connect();
  try {
    await client.query("BEGIN");
    const queued = await client.query("SELECT rythmiq.enqueue($1::jsonb) AS job_id", [JSON.stringify(job)]);
    const job_id: string = queued.rows[0].job_id;
    const made = await client.query("INSERT INTO orders (customer, job_id) VALUES ($1, $2) RETURNING order_id", [
      customer,
      job_id,
    ]);
    await client.query("COMMIT");
    return { order: made.rows[0].order_id, job_id };
  } catch (error) {
    await client.query("ROLLBACK");
    throw error;
  } finally {
    client.release();
  }
}

async function status(id: string): Promise<Status | undefined> {
  const found = await pool.query<Status>(
    `SELECT o.order_id, s.job_id, s.state, s.exit_code, s.error_message, s.artifacts
     FROM orders AS o JOIN rythmiq.job_status AS s USING (job_id) WHERE o.order_id::text = $1`,
    [id],
  );
  return found.rows[0];
}

// One connection listens for all; a lost one is made anew, and then everybody who waits looks once.
async function listen(): Promise<void> {
  const client = new pg.Client({ connectionString });
  client.on("error", () => setTimeout(() => void listen().catch(() => setTimeout(listen, 1000)), 1000));
  client.on("notification", (told) => {
    const { job_id } = JSON.parse(told.payload ?? "{}") as { job_id?: string };
    for (const look of waiting.get(job_id ?? "") ?? []) look();
  });
  await client.connect();
  await client.query("LISTEN rythmiq_events");
  for (const looks of waiting.values()) for (const look of looks) look();
}

async function events(id: string, response: ServerResponse): Promise<void> {
  const first = await status(id);
  if (first === undefined) return answer(response, 404, { error: "no such order" });
  response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-store" });
  const look = async (): Promise<void> => {
    const now = await status(id);
    if (now === undefined || !ENDED.has(now.state) || response.writableEnded) return;
    response.end(`event: ended\ndata: ${JSON.stringify(now)}\n\n`);
  };
  const looks = waiting.get(first.job_id) ?? new Set();
  const notice = (): void => void look();
  waiting.set(first.job_id, looks.add(notice));
  response.on("close", () => {
    looks.delete(notice);
    if (looks.size === 0) waiting.delete(first.job_id);
  });
  await look(); // it may have ended before anybody listened
}

function answer(response: ServerResponse, code: number, data: unknown): void {
  response.writeHead(code, { "Content-Type": "application/json" }).end(JSON.stringify(data));
}

async function read(request: IncomingMessage): Promise<{ customer: string; job: Job }> {
  const parts: Buffer[] = [];
  for await (const part of request) parts.push(part as Buffer);
  return JSON.parse(Buffer.concat(parts).toString("utf8"));
}

async function serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
  const [, place, id, more] = (request.url ?? "").split("/");
  if (place !== "orders") return answer(response, 404, { error: "no such place" });
  if (request.method === "POST" && id === undefined) {
    const { customer, job } = await read(request);
    return answer(response, 201, await order(customer, job));
  }
  if (request.method === "GET" && id && more === "events") return events(id, response);
  const found = id ? await status(id) : undefined;
  if (found === undefined) return answer(response, 404, { error: "no such order" });
  if (request.method === "DELETE") await pool.query("SELECT rythmiq.cancel($1)", [found.job_id]);
  return answer(response, 200, await status(found.order_id));
}

const server = createServer((request, response) => {
  serve(request, response).catch((error: { code?: string; column?: string; message: string }) => {
    if (error.code === INVALID) return answer(response, 400, { field: error.column, error: error.message });
    if (error instanceof SyntaxError) return answer(response, 400, { error: "not JSON" });
    console.error(error.message);
    return answer(response, 503, { error: "try again later" });
  });
});
await listen();
server.listen(Number(process.env.PORT ?? 8080), "127.0.0.1", () => console.log("ready"));

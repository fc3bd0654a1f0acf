/**
 * pkt-gen's threads (-p): each opens one ring pair of the port (PORT-0, PORT-1 …) and runs the job on it, with its share of
 * the count and the rate; this thread adds up what they report. Entry point of a thread: thread.ts.
 */
import { Worker } from 'node:worker_threads';
import type { Job } from './options.ts';
import { Counters, IntervalReport, makeResult, type Outcome } from './report.ts';

/** What a thread is given. */
export interface ThreadData {
  readonly runDir: string | undefined;
  readonly port: string;
  readonly index: number;
  readonly job: Job;
}

/** What it is told: to begin; to end (perhaps before that). */
export type ThreadOrder = 'start' | 'cancel';

/** What it says: its port is open; where it stands; that it is done. */
export type ThreadMessage =
  | { readonly open: { readonly mac: string } }
  | { readonly pkts: number; readonly bytes: number; readonly events: number }
  | { readonly outcome: Outcome };

/** Name of ring pair i of a port: "vale0:x@lab" is "vale0:x-1@lab". */
export function ringName(port: string, i: number): string {
  const [, name = '', rest = ''] = /^([^/@]*)(.*)$/.exec(port) ?? [];
  return `${name}-${i}${rest}`;
}

/** Thread i's part of a number of packets; 0 has no end. */
export function share(total: number, threads: number, i: number): number {
  return total === 0 ? 0 : Math.floor(total / threads) + (i < total % threads ? 1 : 0);
}

/**
 * Runs the threads to their end; when one fails, the others end too, and what all have counted is the result.
 * @param opened called when all ports are open, before anything is sent
 */
export async function runThreads(
  job: Job,
  runDir: string | undefined,
  log: (text: string) => void,
  opened: (mac: string) => Promise<void>,
  cancel: { readonly cancelled: boolean },
): Promise<Outcome> {
  const workers: Worker[] = [];
  const counts: { pkts: number; bytes: number; events: number }[] = [];
  const outcomes: Promise<Outcome>[] = [];
  let mac = '';
  let ended = false;
  try {
    for (let i = 0; i < job.threads; i++) {
      const own: Job = {
        ...job,
        threads: 1,
        count: share(job.count, job.threads, i),
        rate: job.rate / job.threads,
        reportMs: Math.min(job.reportMs, 100),
      };
      const workerData: ThreadData = { runDir, port: ringName(job.port, i), index: i, job: own };
      const worker = new Worker(new URL('thread.js', import.meta.url), { workerData });
      workers.push(worker);
      counts.push({ pkts: 0, bytes: 0, events: 0 });
      // One after the other: the first makes the port.
      await new Promise<void>((resolve, reject) => {
        const outcome = new Promise<Outcome>((done, failed) => {
          worker.on('message', (message: ThreadMessage) => {
            if ('open' in message) {
              ({ mac } = message.open);
              resolve();
            } else if ('outcome' in message) {
              ended ||= message.outcome.error !== undefined;
              done(message.outcome);
            } else counts[i] = message;
          });
          worker.on('error', failed);
          worker.on('exit', (code) => failed(new Error(`thread ${i} ended before its work was done (status ${code})`)));
        });
        outcome.catch(reject); // it is awaited below, when all ports are open
        outcomes.push(outcome);
      });
    }
    const all = Promise.all(outcomes);
    all.catch(() => undefined); // likewise
    await opened(mac);
    const tell = (order: ThreadOrder): void => workers.forEach((worker) => worker.postMessage(order));
    if (cancel.cancelled) tell('cancel');
    tell('start');
    const report = new IntervalReport(job, log, performance.now());
    const ticks = setInterval(() => report.line(summed(counts), performance.now()), job.reportMs);
    const ending = setInterval(() => {
      if (cancel.cancelled || ended) tell('cancel');
    }, 50);
    try {
      const done = await all;
      const each = done.flatMap(({ result }) => result ?? []);
      const sum = summed(each.map(({ packets: pkts, bytes, events }) => ({ pkts, bytes, events })));
      sum.end = 1000 * Math.max(0, ...each.map((r) => r.seconds));
      const error = done.find((outcome) => outcome.error !== undefined)?.error;
      const result = makeResult(job, mac, sum);
      return error === undefined ? { result } : sum.pkts > 0 ? { result, error } : { error };
    } finally {
      clearInterval(ticks);
      clearInterval(ending);
    }
  } finally {
    await Promise.all(workers.map((worker) => worker.terminate()));
  }
}

function summed(
  counts: readonly { readonly pkts: number; readonly bytes: number; readonly events: number }[],
): Counters {
  const sum = new Counters();
  for (const { pkts, bytes, events } of counts) {
    sum.pkts += pkts;
    sum.bytes += bytes;
    sum.events += events;
  }
  return sum;
}

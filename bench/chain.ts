/**
 * A middlebox: generator, pipe, bridge, pipe, sink, each a process; `ptnet bridge` exchanges the buffers of the two
 * pipes, which lie in one region, so no byte is copied.
 */
import { setTimeout } from 'node:timers/promises';
import { Lab } from '../src/cli/lab.ts';
import type { Context, Row } from './bench.ts';
import { conditions, WARM_MS } from './bench.ts';

const BATCHES = [1, 8, 64, 256];
const SLOTS = 4096;
/** One region for all. */
const REGION = '@7';

export async function benchChain({ quiet, ms, progress }: Context): Promise<Row[]> {
  const lab = await Lab.start();
  try {
    const rows: Row[] = [];
    for (const batch of BATCHES) {
      progress(`chain: batch ${batch}`);
      const seen = await quiet.wait();
      rows.push({ bench: 'chain', batch, slots: SLOTS, mpps: await chain(lab, batch, ms), ...conditions([seen]) });
    }
    return rows;
  } finally {
    await lab.stop();
  }
}

/** Millions of packets of 60 bytes that the sink receives a second. */
async function chain(lab: Lab, batch: number, ms: number): Promise<number> {
  const shape = `@conf:slots=${SLOTS}`;
  const end = (pipe: string): string => `netmap:${pipe}${REGION}${shape}`;
  const sink = lab.pktGen(['-i', end('out}1'), '-f', 'rx', '-b', String(SLOTS)]);
  await lab.running('netmap:out}1');
  const bridge = lab.command(['bridge', '-i', end('in}1'), '-i', end('out{1'), '-b', String(batch)]);
  await lab.running('netmap:in}1');
  const source = lab.pktGen(['-i', end('in{1'), '-f', 'tx', '-b', String(batch)]);
  await lab.running('netmap:in{1');
  const received = async (): Promise<number> =>
    lab.port(await lab.status(), 'netmap:out}1')!.rxRings.reduce((n, { packets }) => n + packets, 0);
  await setTimeout(WARM_MS);
  const [before, begin] = [await received(), performance.now()];
  await setTimeout(ms);
  const mpps = ((await received()) - before) / (performance.now() - begin) / 1e3;
  source.interrupt();
  await source.result;
  sink.interrupt();
  await sink.result;
  await bridge.end();
  await Promise.all(['in{1', 'in}1', 'out{1', 'out}1'].map((name) => lab.closed(`netmap:${name}`)));
  return mpps;
}

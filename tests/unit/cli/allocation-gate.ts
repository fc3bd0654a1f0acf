/**
 * Prints the heap that pkt-gen's loops use for a packet, as JSON: [[options, bytes] …]. To be run with --expose-gc and a young
 * generation that holds all of it (--min-semi-space-size), or the collector takes away what is to be counted.
 */
import { runJob } from '../../../src/cli/commands/pkt-gen.ts';
import { type PktGenFlags, parseJob } from '../../../src/cli/pkt-gen/options.ts';
import { Run } from '../../../src/cli/pkt-gen/run.ts';
import { FakePort } from './fake-port.ts';

/** A port whose host takes everything at once and always has a full rx ring, without allocating. */
class EagerPort extends FakePort {
  override poll(events: number): number {
    this.txsync();
    const rx = this.rxRings[0]!;
    rx.tail = (rx.head + rx.numSlots - 1) % rx.numSlots;
    return events;
  }
  override txsync(): void {
    const tx = this.txRings[0]!;
    tx.tail = (tx.head + tx.numSlots - 1) % tx.numSlots;
  }
}

const PACKETS = 400_000;

async function heapPerPacket(flags: PktGenFlags): Promise<number> {
  const port = new EagerPort('02:00:00:00:00:01', 1024);
  const run = new Run(parseJob({ i: 'vale0:x', n: String(PACKETS), ...flags }), () => undefined);
  globalThis.gc?.();
  const before = process.memoryUsage().heapUsed;
  await runJob(port, run);
  return (process.memoryUsage().heapUsed - before) / PACKETS;
}

const results: [PktGenFlags, number][] = [];
for (const flags of [
  { f: 'tx' },
  { f: 'tx', s: '10.0.0.1:1-10.0.0.9:999' },
  { f: 'tx', l: ['512', '60'] },
  { f: 'rx' },
  { f: 'pong' },
] satisfies PktGenFlags[]) {
  await heapPerPacket(flags); // compiles
  results.push([flags, await heapPerPacket(flags)]);
}
process.stdout.write(JSON.stringify(results));

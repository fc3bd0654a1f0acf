/**
 * `receiver --run-dir DIR PORT SLOTS [CPU]`: pkt-gen's rx on a port that first announces itself with one broadcast frame: a
 * switch floods what it has not learned, and a receiver that is silent is never learned. Prints pkt-gen's JSON.
 */
import { openPort } from '../src/api/index.ts';
import { runJob } from '../src/cli/commands/pkt-gen.ts';
import { parseJob } from '../src/cli/pkt-gen/options.ts';
import { Run } from '../src/cli/pkt-gen/run.ts';
import { pinThread } from '../src/os/index.ts';

const [runDir = '', name = '', slots = '1024', cpu] = process.argv.slice(3);
const job = parseJob({ i: name, f: 'rx', b: slots, C: slots });
if (cpu !== undefined) pinThread(Number(cpu));
const port = await openPort(name, { runDir, ...job.rings });
const run = new Run(job, () => undefined);
process.on('SIGINT', () => void (run.cancelled = true));

const ring = port.txRings[0]!;
const at = ring.bufOfs(ring.head);
port.m.u8.fill(0, at, at + 60);
port.m.u8.fill(255, at, at + 6);
port.m.u8.set(
  port.mac.split(':').map((b) => Number.parseInt(b, 16)),
  at + 6,
);
ring.setLen(ring.head, 60);
ring.setFlags(ring.head, 0);
ring.head = ring.next(ring.head);
ring.cur = ring.head;
port.txsync();

const result = await runJob(port, run);
await port.close();
process.stdout.write(`${JSON.stringify(result)}\n`);

/** A thread of pkt-gen -p: one ring pair of the port. See threads.ts. */
import { parentPort, workerData } from 'node:worker_threads';
import { openPort } from '../../api/index.ts';
import { pinThread } from '../../os/index.ts';
import { runWhilePossible } from '../commands/pkt-gen.ts';
import { Run } from './run.ts';
import type { ThreadData, ThreadMessage, ThreadOrder } from './threads.ts';

const { job, runDir, port: name, index } = workerData as ThreadData;
const main = parentPort!;
const post = (message: ThreadMessage): void => main.postMessage(message);

if (job.cpu >= 0) pinThread(job.cpu + (job.cpus === 0 ? index : index % job.cpus));
const port = await openPort(name, {
  ...job.rings,
  vnetHdr: job.vnetHdrLen > 0,
  ...(runDir === undefined ? {} : { runDir }),
});
const run: Run = new Run(job, () => {
  const { pkts, bytes, events } = run.counters;
  post({ pkts, bytes, events });
});
const started = new Promise<void>((start) => {
  main.on('message', (order: ThreadOrder) => {
    if (order === 'start') start();
    else run.cancelled = true;
  });
});
post({ open: { mac: port.mac } });
await started;
const outcome = await runWhilePossible(port, run);
await port.close();
post({ outcome });
main.close();

/** A worker that waits to fill an eventfd again as soon as there is room. */
import { parentPort, workerData } from 'node:worker_threads';
import { libc, scratch } from '../../../src/os/libc.ts';

const max = scratch(8);
max.view.setBigUint64(0, 0xffff_ffff_ffff_fffen, true);
parentPort!.postMessage('ready');
libc.write(workerData as number, max.address, 8);

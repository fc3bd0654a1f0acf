/** A process that opens an end of a pipe, takes packets, leaves its slots in disorder, and waits to be killed. */
import { openPort, POLLIN } from '../../../src/api/index.ts';

const [, , runDir, name] = process.argv;
const port = await openPort(name!, { runDir: runDir! });
process.send!('open');
const rx = port.rxRings[0]!;
const tx = port.txRings[0]!;
await port.wait(POLLIN, { timeoutMs: 10_000 });
for (let i = 0; i < 7 && rx.head !== rx.tail; i++) {
  // Half of the packets go out again by swapping buffers, without having been handed over.
  if (i % 2 === 0) {
    const [k, j] = [rx.head, (tx.head + i) % tx.numSlots];
    const idx = tx.bufIdx(j);
    tx.setBufIdx(j, rx.bufIdx(k));
    rx.setBufIdx(k, i === 4 ? 0xffff_ffff : idx);
  }
  rx.head = rx.cur = rx.next(rx.head);
}
port.rxsync();
tx.setBufIdx(tx.head, 12345678);
process.send!('done');
await new Promise((resolve) => setTimeout(resolve, 60_000));

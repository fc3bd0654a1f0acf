/**
 * A guest that opens and closes a port again and again. Arguments: run directory, port, cycles. Some cycles send, some
 * wait, some leave packets unsent. After each line "cycles N" it waits for a line on stdin.
 */
import { createInterface } from 'node:readline';
import { openPort, POLLIN } from '../../../src/api/index.ts';

const [runDir, name, ...stops] = process.argv.slice(2) as [string, string, ...string[]];
const lines = createInterface(process.stdin)[Symbol.asyncIterator]();
let cycle = 0;
for (const stop of stops.map(Number)) {
  for (; cycle < stop; cycle++) {
    const port = await openPort(name, { runDir });
    const ring = port.txRings[0]!;
    if (cycle % 3 > 0) {
      for (let i = 0; i < 10; i++) {
        port.m.u8.fill(255, ring.bufOfs(ring.head), ring.bufOfs(ring.head) + 60);
        ring.setLen(ring.head, 60);
        ring.head = ring.cur = ring.next(ring.head);
        if (cycle % 3 === 1) port.txsync();
      }
    }
    if (cycle % 7 === 0) await port.wait(POLLIN, { timeoutMs: 1 });
    await port.close();
  }
  process.stdout.write(`cycles ${cycle}\n`);
  await lines.next();
}
process.exit(0);

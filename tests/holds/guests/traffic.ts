/** A guest that sends for ever, to everybody, and takes what comes. Arguments: run directory, port. Says "running". */
import { openPort, POLLIN, POLLOUT } from '../../../src/api/index.ts';

const [runDir, name] = process.argv.slice(2) as [string, string];
const port = await openPort(name, { runDir });
const [tx, rx] = [port.txRings[0]!, port.rxRings[0]!];
process.stdout.write(`running ${port.mac}\n`);
try {
  for (;;) {
    for (let i = 0; i < 100 && tx.space() > 0; i++) {
      port.m.u8.fill(255, tx.bufOfs(tx.head), tx.bufOfs(tx.head) + 60);
      tx.setLen(tx.head, 60);
      tx.head = tx.cur = tx.next(tx.head);
    }
    port.poll(POLLIN | POLLOUT, 10);
    rx.head = rx.cur = rx.tail;
    await new Promise((resolve) => setImmediate(resolve));
  }
} catch (e) {
  process.stdout.write(`gone ${(e as Error).message}\n`);
  process.exit(0);
}

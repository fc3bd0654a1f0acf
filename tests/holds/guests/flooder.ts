/** A guest that never stops sending, to its own address: nobody's ring is filled, the thread has all the work. Arguments: run directory, port. */
import { openPort, POLLOUT } from '../../../src/api/index.ts';
import { macBytes } from './packets.ts';

const [runDir, name] = process.argv.slice(2) as [string, string];
const port = await openPort(name, { runDir });
const tx = port.txRings[0]!;
const address = macBytes(port.mac);
for (let i = 0; i < tx.numSlots; i++) {
  const at = tx.bufOfs(i);
  for (let k = 0; k < 12; k++) port.m.u8[at + k] = address[k % 6]!;
  tx.setLen(i, 1514);
}
process.stdout.write('flooding\n');
for (;;) {
  tx.head = tx.cur = tx.tail;
  port.txsync();
  if (tx.space() === 0) port.poll(POLLOUT, 100);
}

// Prints what a netmap port receives: node dist/examples/receive.js vale0:b
import { openPort, POLLIN } from '../src/api/index.ts';

const port = await openPort(process.argv[2] ?? 'vale0:b');
const ring = port.rxRings[0]!;
for (;;) {
  await port.wait(POLLIN);
  for (; ring.head !== ring.tail; ring.head = ring.cur = ring.next(ring.head)) {
    const at = ring.bufOfs(ring.head);
    console.log(Buffer.from(port.m.u8.slice(at, at + ring.len(ring.head))).toString('hex'));
  }
}

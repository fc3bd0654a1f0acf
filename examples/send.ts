// Sends frames from a netmap port for ever: node dist/examples/send.js vale0:a
import { openPort, POLLOUT } from '../src/api/index.ts';

const port = await openPort(process.argv[2] ?? 'vale0:a');
const ring = port.txRings[0]!;
const frame = Buffer.from(`ffffffffffff${port.mac.replaceAll(':', '')}88b5${'00'.repeat(46)}`, 'hex');
for (;;) {
  await port.wait(POLLOUT);
  for (; ring.head !== ring.tail; ring.head = ring.cur = ring.next(ring.head)) {
    port.m.u8.set(frame, ring.bufOfs(ring.head));
    ring.setLen(ring.head, frame.length);
  }
}

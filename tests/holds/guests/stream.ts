/**
 * A guest that sends or receives a stream of numbered packets. Arguments: run directory, port, role, bytes, count, mac of
 * the peer. Roles: `paced` sends no more than the receiver has acknowledged room for; `ack` receives and acknowledges;
 * `flood` sends as fast as it can; `slow` receives slowly, until a packet numbered `count` - 1 or silence after it was told
 * to end. Prints "ready MAC", then one line of JSON.
 */
import { openPort } from '../../../src/api/index.ts';
import { macBytes, POLLIN, POLLOUT, poll, Stream } from './packets.ts';

const [runDir, name, role, bytesText, countText, peer = 'ff:ff:ff:ff:ff:ff'] = process.argv.slice(2) as [
  string,
  string,
  string,
  string,
  string,
  string?,
];
const [bytes, count] = [Number(bytesText), Number(countText)];
const port = await openPort(name, { runDir });
const [tx, rx] = [port.txRings[0]!, port.rxRings[0]!];
const stream = new Stream(port, peer, bytes);
/** Slots that may be under way: the receiver's ring has room for them all, with its acknowledgements' own. */
const WINDOW = Math.floor((rx.numSlots - 2) / stream.frags);
const ACK_EVERY = Math.floor(WINDOW / 4);
const out = (line: string): void => void process.stdout.write(`${line}\n`);

/** Acknowledgement: 60 bytes with the count of packets received. */
function sendAck(received: number): void {
  while (tx.space() === 0) poll(port, POLLOUT);
  const at = tx.bufOfs(tx.head);
  macBytes(peer).forEach((b, i) => (port.m.u8[at + i] = b));
  macBytes(port.mac).forEach((b, i) => (port.m.u8[at + 6 + i] = b));
  port.m.u32[(at + 16) >>> 2] = received;
  tx.setLen(tx.head, 60);
  tx.setFlags(tx.head, 0);
  tx.head = tx.cur = tx.next(tx.head);
  port.txsync();
}

/** Sends all; returns when the receiver has acknowledged all. */
function paced(): void {
  let sent = 0;
  for (let acked = 0; acked < count; ) {
    while (sent < count && sent - acked < WINDOW && stream.put(tx, sent)) sent++;
    port.txsync();
    // Room for more is waited for only if the window has some: what is awaited else is an acknowledgement.
    poll(port, sent < count && sent - acked < WINDOW ? POLLIN | POLLOUT : POLLIN);
    for (port.rxsync(); rx.head !== rx.tail; rx.head = rx.cur = rx.next(rx.head)) {
      acked = port.m.u32[(rx.bufOfs(rx.head) + 16) >>> 2]!;
    }
  }
}

/** Receives `count` packets, in order. */
function ack(): void {
  for (let n = 0; n < count; ) {
    poll(port, POLLIN);
    while (n < count && rx.head !== rx.tail) {
      const got = stream.take(rx);
      if (got !== n) throw new Error(`packet ${got} instead of ${n}`);
      n++;
      if (n % ACK_EVERY === 0 || n === count) {
        // What was taken is given back before more is asked for.
        port.rxsync();
        sendAck(n);
      }
    }
  }
}

function flood(): void {
  for (let n = 0; n < count; ) {
    if (stream.put(tx, n)) {
      n++;
      continue;
    }
    port.txsync();
    if (tx.space() < stream.frags) poll(port, POLLOUT);
  }
  for (port.txsync(); tx.next(tx.tail) !== tx.head; port.txsync()) port.poll(POLLOUT, 1);
}

/** Receives with pauses until told to end (a line on stdin), and then what is left. */
async function slow(): Promise<number> {
  let [received, last, ended] = [0, -1, false];
  process.stdin.once('data', () => (ended = true));
  for (;;) {
    await new Promise((resolve) => setImmediate(resolve));
    const done = ended;
    if (port.poll(POLLIN, done ? 0 : 5) === 0 && done) break;
    for (let k = 0; k < 64 && rx.head !== rx.tail; k++) {
      const n = stream.take(rx);
      if (n <= last) throw new Error(`packet ${n} after ${last}`);
      last = n;
      received++;
    }
  }
  return received;
}

out(`ready ${port.mac}`);
let result = count;
if (role === 'paced') paced();
else if (role === 'ack') ack();
else if (role === 'flood') flood();
else result = await slow();
out(JSON.stringify({ role, result }));
// The daemon's counters live as long as the port: the parent reads them before it lets this end.
if (role === 'flood' || role === 'slow') {
  process.stdin.resume();
  await new Promise((resolve) => process.stdin.once('end', resolve));
}
await port.close();
process.exit(0);

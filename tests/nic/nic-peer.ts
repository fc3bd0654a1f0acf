/**
 * The other end of the wire, as a process in its own network namespace, with packet sockets.
 *   send IF COUNT BYTES WINDOW [VLAN]   sends numbered frames, at most WINDOW more than standard input says have arrived
 *                                       (0: as fast as it can)
 *   stack IF COUNT BYTES WINDOW         the same, by the way of what the host's stack sends (past tc)
 *   receive IF [VLAN]                   counts numbered frames until SIGINT; says how many there are as they come
 * Says "ready", and at the end what it counted, as JSON.
 */
import { closeFd, errno, interfaceIndex, PacketVector, packetSocket, TAG_AT, watch } from '../../src/os/index.ts';
import { libc, scratch } from '../../src/os/libc.ts';
import { FrameCounter, writeFrame } from './nic-frames.ts';

const SOL_PACKET = 263;
const PACKET_QDISC_BYPASS = 20;

const [command, iface, ...rest] = process.argv.slice(2) as [string, string, ...string[]];
const fd = packetSocket(interfaceIndex(iface));
const vector = new PacketVector(1);
const frame = scratch(65536);

function end(result: Readonly<Record<string, number>>): void {
  closeFd(fd);
  process.stdout.write(`${JSON.stringify(result)}\n`, () => process.exit());
}

if (command === 'stack') {
  const off = scratch(4);
  libc.setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, off.address, 4);
}
if (command !== 'receive') {
  const [count, bytes, window, vlan] = rest.map(Number) as [number, number, number, number?];
  vector.set(0, frame.address, bytes);
  let arrived = 0;
  let n = 0;
  let refused = 0;
  const one = (): void => {
    writeFrame(frame.u8, bytes, n, vlan);
    for (let result = 0; (result = vector.write(fd, 0, 1)) < 0; ) {
      if (result === -errno.ENETDOWN || result === -errno.ENXIO) {
        refused++;
        break;
      }
    }
    n++;
  };
  let sending = false;
  const some = (): void => {
    const due = window === 0 ? count : Math.min(count, arrived + window);
    for (let burst = Math.min(64, due - n); burst > 0; burst--) one();
    sending = n < due;
    if (sending) setImmediate(some);
    else if (n === count) end({ sent: n, refused });
  };
  process.stdin.setEncoding('utf8').on('data', (text: string) => {
    arrived = Number(text.trimEnd().split('\n').at(-1));
    if (!sending && n < count) some();
  });
  process.stdout.write('ready\n');
  some();
} else {
  const vlan = rest[0] === undefined ? undefined : Number(rest[0]);
  const counter = new FrameCounter(vlan);
  vector.set(0, frame.address, 65532);
  const some = (): void => {
    for (let n = 0; (n = vector.read(fd, 0, 1)) > 0; ) {
      let length = n;
      if (vector.tag.length > 0) {
        frame.u8.copyWithin(TAG_AT + 4, TAG_AT, n);
        frame.u8.set(vector.tag, TAG_AT);
        length += 4;
      }
      counter.add(frame.u8, length);
      if (counter.frames % 32 === 0) process.stdout.write(`${counter.frames}\n`);
    }
    process.stdout.write(`${counter.frames}\n`);
  };
  const watching = watch(fd, { readable: true, writable: false }, some);
  process.once('SIGINT', () => {
    watching.close();
    some();
    const { frames, disorder, wrong, bytes } = counter;
    end({ frames, disorder, wrong, bytes });
  });
  process.stdout.write('ready\n');
}

/**
 * The other end of the wire, as a process in its own network namespace, with packet sockets.
 *   send IF COUNT BYTES PER_MS [VLAN]   sends numbered frames, PER_MS of them every millisecond (0: as fast as it can)
 *   receive IF [VLAN]                   counts numbered frames until SIGINT
 * Says "ready", and at the end what it counted, as JSON.
 */
import { closeFd, errno, interfaceIndex, PacketVector, packetSocket, TAG_AT } from '../../src/os/index.ts';
import { scratch } from '../../src/os/libc.ts';
import { FrameCounter, writeFrame } from './nic-frames.ts';

const [command, iface, ...rest] = process.argv.slice(2) as [string, string, ...string[]];
const fd = packetSocket(interfaceIndex(iface));
const vector = new PacketVector(1);
const frame = scratch(65536);
process.stdout.write('ready\n');

if (command === 'send') {
  const [count, bytes, perMs, vlan] = rest.map(Number) as [number, number, number, number?];
  vector.set(0, frame.address, bytes);
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
  const start = performance.now();
  const some = (): void => {
    const due = perMs === 0 ? count : Math.min(count, Math.floor((performance.now() - start) * perMs) + 1);
    for (let burst = Math.min(64, due - n); burst > 0; burst--) one();
    if (n < count) setImmediate(some);
    else {
      process.stdout.write(`${JSON.stringify({ sent: n, refused })}\n`);
      closeFd(fd);
    }
  };
  some();
} else {
  const vlan = rest[0] === undefined ? undefined : Number(rest[0]);
  const counter = new FrameCounter(vlan);
  vector.set(0, frame.address, 65532);
  let ended = false;
  const some = (): void => {
    for (let i = 0; i < 256; i++) {
      const n = vector.read(fd, 0, 1);
      if (n <= 0) break;
      let length = n;
      if (vector.tag.length > 0) {
        frame.u8.copyWithin(TAG_AT + 4, TAG_AT, n);
        frame.u8.set(vector.tag, TAG_AT);
        length += 4;
      }
      counter.add(frame.u8, length);
    }
    if (!ended) {
      setImmediate(some);
      return;
    }
    const { frames, disorder, wrong, bytes } = counter;
    process.stdout.write(`${JSON.stringify({ frames, disorder, wrong, bytes })}\n`);
    closeFd(fd);
  };
  process.once('SIGINT', () => (ended = true));
  some();
}

/**
 * What the kernel does with frames by itself, in the network namespace that this is run in, for as long as its parent lives:
 *   drop IF, pass IF    an XDP program that drops every frame, or leaves it to the kernel
 *   send IF SIZE        the kernel sends frames there, as fast as the other end takes them
 * Says "ready".
 */
import { interfaceIndex, xdpAlways, xdpAttach, xdpSend } from '../src/os/index.ts';

/** Frames between two looks for the parent. */
const AT_ONCE = 100_000;

const [what, iface = '', size] = process.argv.slice(2);
const ifindex = interfaceIndex(iface);
if (what === 'drop' || what === 'pass') {
  xdpAttach(xdpAlways(what), ifindex);
  process.stdin.on('end', () => process.exit()).resume();
  process.stdout.write('ready\n');
} else {
  // An EtherType for experiments: a stack that gets it drops it at once. (A bridge would look into IPv4, and drop it before.)
  const frame = new Uint8Array(Number(size));
  frame.set([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
  const parent = process.ppid;
  process.stdout.write('ready\n');
  while (process.ppid === parent) xdpSend(ifindex, frame, AT_ONCE);
}

/**
 * What stands between a machine and a bridge without ptnet. Run in a namespace. `relay HDR`: makes the TAP interfaces near0
 * and far0 and copies frames between them, with VirtIO headers of HDR bytes, as a VM's network card and its TAP.
 * `no-offloads IF`: turns the offloads of an interface off.
 */
import { FrameVector, openTap, POLLIN, PollSet, setInterfaceFeature } from '../src/os/index.ts';

const [command, argument = ''] = process.argv.slice(2);
if (command === 'no-offloads') {
  setInterfaceFeature(argument, 'tso', false);
  setInterfaceFeature(argument, 'txcsum', false);
} else {
  const offload = { txcsum: true, tso: true };
  const fds = ['near0', 'far0'].map((name) => openTap(name, 1, Number(argument), offload).fds[0]!);
  process.stdout.write('ready\n');
  const bytes = 66_000;
  const vector = new FrameVector(1);
  vector.hold(0, new Uint8Array(new ArrayBuffer(bytes)));
  const poll = new PollSet(fds.map((fd) => ({ fd, events: POLLIN })));
  const copy = (from: number, to: number): boolean => {
    vector.setBytes(0, bytes);
    const n = vector.read(from, 0, 1);
    if (n <= 0) return false;
    vector.setBytes(0, n);
    vector.write(to, 0, 1);
    return true;
  };
  for (;;) {
    const moved = [copy(fds[0]!, fds[1]!), copy(fds[1]!, fds[0]!)];
    if (!moved.includes(true)) poll.poll(1000);
  }
}

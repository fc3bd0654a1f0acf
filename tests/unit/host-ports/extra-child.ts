/** A process with extra buffers: spreads them over rings and a pipe, ruins their list, and waits to be killed. */
import { NETMAP_FIRST_BUF, netmap_if } from '../../../src/abi/index.ts';
import { openPort } from '../../../src/api/index.ts';

const [, , runDir = '', portName = '', pipeName = '', round = '0'] = process.argv;
const port = await openPort(portName, { runDir, extraBufs: 50 });
const pipe = await openPort(pipeName, { runDir });
const extra = [...port.extraBufs];
const rx = port.rxRings[0]!;
const tx = pipe.txRings[0]!;
// Into slots that hold packets or are free for them; what was there is from now on only in this process's hands.
for (let i = 0; i < 20; i++) rx.setBufIdx((rx.head + i) % rx.numSlots, extra.pop()!);
rx.head = rx.cur = rx.tail;
port.rxsync();
// On their way to somebody else.
for (let i = 0; i < 10; i++) {
  tx.setBufIdx(tx.head, extra.pop()!);
  new DataView(pipe.m.u8.buffer).setUint32(tx.bufOfs(tx.head), 100 + i);
  tx.setLen(tx.head, 60);
  tx.head = tx.cur = tx.next(tx.head);
}
pipe.txsync();
// Written into slots, but not handed over.
for (let i = 0; i < 5; i++) tx.setBufIdx((tx.head + i) % tx.numSlots, extra.pop()!);
// The list leads nowhere, round in circles, or to buffers of others.
const heads = [0, extra[0]!, NETMAP_FIRST_BUF, 0xffff_ffff];
netmap_if.set.ni_bufs_head(port.m, port.nifp, heads[Number(round) % heads.length]!);
for (const idx of extra) port.m.u32[port.bufOfs(idx) >>> 2] = heads[(Number(round) + 1) % heads.length]!;
process.send!(port.extraBufs.length);
await new Promise((resolve) => setTimeout(resolve, 60_000));

/** MSI-X vectors: set, replaced, taken away, and descriptors that are not what they should be (R15). */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { nm_csb_atok } from '../../../src/abi/index.ts';
import { closeFd, eventfd, eventfdRead, eventfdSignal, memfd, socketPair } from '../../../src/os/index.ts';
import { makeBlocking } from './hostile.ts';
import { openFds, RawGuest, SharedRing, withRig } from './rig.ts';

const MSIX = 2;
const flagsOf = (fd: number): number =>
  Number.parseInt(/flags:\s*([0-7]+)/.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))![1]!, 8);

test('interrupts reach the eventfd of the ring’s vector; replaced and disabled ones are let go', () =>
  withRig(async (rig) => {
    const { device, region, registration } = rig.addPort();
    const other = rig.addPort();
    const guest = new RawGuest(await rig.connect(device));
    const sender = new RawGuest(await rig.connect(other.device));
    const before = openFds();
    const fds = [eventfd(), eventfd(), eventfd()];
    await guest.client.setIrqs({ index: MSIX, start: 0, fds: fds.slice(0, 2) });
    await guest.start();
    await sender.start();
    const tx = new SharedRing(other.region, other.registration, other.registration.txRings[0]!);
    let head = 0;
    const send = (): void => {
      tx.put(head, new Uint8Array(60).fill(255));
      head = (head + 1) % 32;
      sender.setHead(0, head);
      guest.memory.setU32(guest.atok(1) + nm_csb_atok.ofs.appl_need_kick, 1);
      rig.kloop.turn();
    };
    const seen = (): bigint[] => fds.map((fd) => eventfdRead(fd));
    send();
    assert.deepEqual(seen(), [0n, 1n, 0n]);
    await guest.client.setIrqs({ index: MSIX, start: 1, fds: [fds[2]!] });
    send();
    assert.deepEqual(seen(), [0n, 0n, 1n]);
    await guest.client.setIrqs({ index: MSIX, start: 1, fds: [], count: 1 });
    send();
    assert.deepEqual(seen(), [0n, 0n, 0n]);
    for (let i = 0; i < 100; i++) await guest.client.setIrqs({ index: MSIX, start: 0, fds: fds.slice(0, 2) });
    send();
    assert.deepEqual(seen(), [0n, 1n, 0n]);
    await guest.client.disableIrqs(MSIX);
    send();
    assert.deepEqual(seen(), [0n, 0n, 0n]);
    assert.equal(
      new SharedRing(region, registration, registration.rxRings[0]!).len(4),
      60,
      'frames arrive all the same',
    );
    for (const fd of fds) closeFd(fd);
    assert.equal(openFds(), before + 2, 'what is left is the two clients’ DMA_MAPs');
  }));

test('R15: what is no eventfd is refused, vector by vector, and nothing is kept', () =>
  withRig(async (rig) => {
    const { client } = new RawGuest(await rig.connect(rig.addPort({ shape: { txRings: 2, rxRings: 2 } }).device));
    const good = eventfd();
    const memory = memfd('no eventfd', 4096);
    const [a, b] = socketPair();
    const before = openFds();
    for (const bad of [memory, a]) {
      await assert.rejects(client.setIrqs({ index: MSIX, start: 0, fds: [good, bad, good, good] }), /EINVAL/);
    }
    await assert.rejects(client.setIrqs({ index: MSIX, start: 2, fds: [good, good, good] }), /EINVAL/, 'too many');
    await assert.rejects(client.setIrqs({ index: MSIX, start: 4, fds: [good] }), /EINVAL/);
    await assert.rejects(client.setIrqs({ index: 0, start: 0, fds: [good] }), /EINVAL/);
    assert.equal(openFds(), before);
    for (const fd of [good, memory, a!, b!]) closeFd(fd);
  }));

test('R15: a blocking eventfd is made non-blocking; a full one loses nothing but its own interrupt', () =>
  withRig(async (rig) => {
    const { device } = rig.addPort();
    const guest = new RawGuest(await rig.connect(device));
    const fd = eventfd();
    makeBlocking(fd);
    assert.equal(flagsOf(fd) & 0o4000, 0);
    await guest.client.setIrqs({ index: MSIX, start: 0, fds: [fd, fd] });
    assert.equal(flagsOf(fd) & 0o4000, 0o4000);
    assert.equal(eventfdSignal(fd), 0);
    assert.equal(device.ownsIrq(-2), false);
    closeFd(fd);
  }));

test('a client that leaves takes its vectors with it', () =>
  withRig(async (rig) => {
    const { device } = rig.addPort();
    const before = openFds();
    for (let i = 0; i < 5; i++) {
      const guest = new RawGuest(await rig.connect(device, i % 2 === 0 ? 'memory' : 'socket'));
      const fds = [eventfd(), eventfd()];
      await guest.client.setIrqs({ index: MSIX, start: 0, fds });
      await guest.start();
      guest.client.close();
      await rig.settled();
      for (const fd of fds) closeFd(fd);
      guest.memory.close();
      assert.equal(openFds(), before);
    }
  }));

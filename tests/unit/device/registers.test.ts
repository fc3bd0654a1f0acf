/** What a driver finds in configuration space and BAR0 of the two devices, by every width and at every edge. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PCI, PTNET_IO, PTNET_MDEV_IO } from '../../../src/abi/index.ts';
import { eventfd, eventfdRead } from '../../../src/os/index.ts';
import { RawGuest, withRig } from './rig.ts';

/** Every register, in the order of ptnet_attach and then the rest. */
const READ_ONLY = [
  'MAC_LO',
  'MAC_HI',
  'NIFP_OFS',
  'NUM_TX_RINGS',
  'NUM_RX_RINGS',
  'NUM_TX_SLOTS',
  'NUM_RX_SLOTS',
  'HOSTMEMID',
] as const;

test('configuration space: identity, MSI-X, the bits that stick and those that do not', () =>
  withRig(async (rig) => {
    const port = rig.addPort({ shape: { txRings: 2, rxRings: 3 } });
    const guest = new RawGuest(await rig.connect(port.device), 5);
    assert.equal(await guest.config(PCI.VENDOR_ID, 4), 0x000d1b36);
    assert.equal((await guest.config(PCI.REVISION_ID, 4)) >>> 8, 0x020000);
    assert.equal(await guest.config(PCI.INTERRUPT_PIN, 1), 0, 'no INTx');
    assert.equal(await guest.config(PCI.STATUS, 2), PCI.STATUS_CAP_LIST);
    assert.equal(await guest.config(PCI.CAPABILITY_LIST, 1), 0x40);
    assert.equal(await guest.config(0x40, 4), ((5 - 1) << 16) | 0x11, 'table size is vectors - 1');
    assert.equal(await guest.config(0x44, 4), 2, 'table: BAR2 at 0');
    assert.equal(await guest.config(0x48, 4), 2048 | 2, 'PBA: BAR2 at 2048');
    assert.equal(await guest.config(PCI.BAR0, 4), 1, 'I/O ports');
    await guest.client.regionWrite(7, 0, new Uint8Array(256).fill(0xff));
    assert.equal(await guest.config(PCI.VENDOR_ID, 4), 0x000d1b36);
    assert.equal(await guest.config(PCI.COMMAND, 2), PCI.COMMAND_MASK);
    assert.equal(await guest.config(PCI.BAR0, 4), 1, 'QEMU emulates BARs: nothing is stored');
    assert.equal(await guest.config(PCI.INTERRUPT_LINE, 1), 0xff);
    assert.equal(await guest.config(0x42, 2), 0xc004, 'enable and function mask stick, the size does not');
    await guest.client.reset();
    assert.equal(await guest.config(PCI.COMMAND, 2), 0);
    const memdev = new RawGuest(await rig.connect(port.memdev));
    assert.equal(await memdev.config(PCI.VENDOR_ID, 4), 0x000c1b36);
    assert.equal((await memdev.config(PCI.REVISION_ID, 4)) >>> 8, 0xff0000);
    assert.equal(await memdev.config(PCI.BAR0 + 4, 4), PCI.BAR_MEM_64 | PCI.BAR_MEM_PREFETCH);
    assert.equal(await memdev.config(PCI.STATUS, 2), 0, 'no capability');
  }));

test('registers: values, odd widths and offsets, nothing written to what is read only', () =>
  withRig(async (rig) => {
    const { device, memdev, registration, region } = rig.addPort({ shape: { txSlots: 64, rxSlots: 128 } });
    const guest = new RawGuest(await rig.connect(device));
    const expect: Record<(typeof READ_ONLY)[number], number> = {
      MAC_LO: 0x00000001,
      MAC_HI: 0x0200,
      NIFP_OFS: registration.nifpOfs,
      NUM_TX_RINGS: 1,
      NUM_RX_RINGS: 1,
      NUM_TX_SLOTS: 64,
      NUM_RX_SLOTS: 128,
      HOSTMEMID: region.memId,
    };
    for (const name of READ_ONLY) {
      await guest.write(PTNET_IO[name], 0xffffffff);
      assert.equal(await guest.read(PTNET_IO[name]), expect[name], name);
    }
    const bytes = await guest.client.regionRead(0, PTNET_IO.NUM_RX_SLOTS - 1, 3);
    assert.deepEqual([...bytes], [0, 128, 0], 'reads cut across registers');
    await guest.client.regionWrite(0, PTNET_IO.PTCTL, Uint8Array.of(1));
    await guest.client.regionWrite(0, PTNET_IO.PTCTL + 1, Uint8Array.of(1, 0, 0, 0));
    await guest.client.regionWrite(0, PTNET_IO.PTCTL - 4, new Uint8Array(8).fill(1));
    assert.deepEqual(
      rig.commands.filter((c) => c === 'start'),
      [],
      'only whole registers are written',
    );
    for (const unknown of [PTNET_IO.CSBBAH, PTNET_IO.CSBBAL, 72, 124]) {
      await guest.write(unknown, 1);
      assert.equal(await guest.read(unknown), 0);
    }
    await assert.rejects(guest.client.regionRead(0, 254, 4), /EINVAL/);
    await assert.rejects(guest.client.regionRead(3, 0, 4), /EINVAL/, 'a BAR that does not exist');
    const mdev = new RawGuest(await rig.connect(memdev));
    assert.equal(await mdev.read(PTNET_MDEV_IO.MEMSIZE_LO), region.layout.size);
    assert.equal(await mdev.read(PTNET_MDEV_IO.MEMSIZE_HI), 0);
    assert.equal(await mdev.read(PTNET_MDEV_IO.MEMID), region.memId);
    assert.equal(await mdev.read(PTNET_MDEV_IO.BUF_POOL_OFS), region.layout.bufPool.ofs);
    await mdev.write(PTNET_MDEV_IO.MEMID, 99);
    assert.equal(await mdev.read(PTNET_MDEV_IO.MEMID), region.memId);
  }));

test('a VirtIO header is granted with its feature bit or not at all, and gone at RESET', () =>
  withRig(async (rig) => {
    const plain = new RawGuest(await rig.connect(rig.addPort().device));
    await plain.write(PTNET_IO.PTFEAT, 0xffffffff);
    await plain.write(PTNET_IO.VNET_HDR_LEN, 12);
    assert.deepEqual([await plain.read(PTNET_IO.PTFEAT), await plain.read(PTNET_IO.VNET_HDR_LEN)], [0, 0]);
    const { device, states } = rig.addPort({ vnetHdr: true });
    const guest = new RawGuest(await rig.connect(device));
    await guest.write(PTNET_IO.VNET_HDR_LEN, 12);
    assert.equal(await guest.read(PTNET_IO.VNET_HDR_LEN), 0, 'the Linux driver writes 12 whatever PTFEAT said');
    await guest.write(PTNET_IO.PTFEAT, 0xffffffff);
    assert.equal(await guest.read(PTNET_IO.PTFEAT), 1, 'unknown bits are masked');
    for (const [asked, got] of [
      [12, 12],
      [10, 10],
      [11, 0],
      [0xffffffff, 0],
      [12, 12],
    ] as const) {
      await guest.write(PTNET_IO.VNET_HDR_LEN, asked);
      assert.equal(await guest.read(PTNET_IO.VNET_HDR_LEN), got);
    }
    for (let i = 0; i < 50; i++) await guest.write(PTNET_IO.VNET_HDR_LEN, 12);
    assert.ok(states.length < 12, 'writing the same over and over tells the control thread nothing');
    await guest.client.reset();
    assert.deepEqual([await guest.read(PTNET_IO.PTFEAT), await guest.read(PTNET_IO.VNET_HDR_LEN)], [0, 0]);
  }));

test('R14: the kick eventfd is the client’s own, and the one behind the KICK registers is nobody else’s', () =>
  withRig(async (rig) => {
    const [a, b] = [rig.addPort(), rig.addPort()];
    const kicks = async (device: typeof a.device): Promise<number[]> => {
      const got = await (await rig.connect(device)).regionIoFds(0);
      assert.deepEqual(
        got.map((e) => [e.offset, e.size]),
        [
          [128, 4],
          [132, 4],
        ],
      );
      return [...new Set(got.map((e) => e.fd))];
    };
    const [fdA] = await kicks(a.device);
    const [fdB] = await kicks(b.device);
    // One is written, the other stays 0: they are different files.
    const { eventfdSignal, closeFd } = await import('../../../src/os/index.ts');
    eventfdSignal(fdA!);
    assert.equal(eventfdRead(fdB!), 0n);
    assert.equal(eventfdRead(fdA!), 1n);
    const before = rig.commands.filter((c) => c === 'kick-add').length;
    assert.equal(before, 4, 'for each client one that it rings, and one that the device rings');
    closeFd(fdA!);
    closeFd(fdB!);
  }));

test('R15: a client that fills its kick eventfd and makes it blocking stops nobody: KICK registers do not touch it', () =>
  withRig(async (rig) => {
    const { fill, makeBlocking } = await import('./hostile.ts');
    const client = await rig.connect(rig.addPort().device);
    const guest = new RawGuest(client);
    const [kick] = (await client.regionIoFds(0)).map((e) => e.fd);
    fill(kick!);
    makeBlocking(kick!);
    await guest.write(PTNET_IO.KICK_BASE, 0);
    await guest.write(PTNET_IO.KICK_BASE + 4, 0);
    await guest.write(PTNET_IO.KICK_BASE + 8, 0);
    await guest.write(252, 0xffffffff);
    assert.equal(await guest.read(PTNET_IO.NUM_TX_RINGS), 1, 'the device goes on');
    assert.ok(eventfd() > 0);
  }));

/** The strict guests: a host that keeps the rules satisfies them, and they catch each way of breaking one. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  NS_INDIRECT,
  NS_MOREFRAG,
  netmap_if,
  netmap_ring,
  netmap_slot,
  nm_csb_atok,
  nm_csb_ktoa,
  PCI,
  PTNET_IO,
  PTNET_MDEV_IO,
} from '../../../src/abi/index.ts';
import { StrictGuest } from '../../../src/guest/strict-guest.ts';
import type { FakeRing } from './fake-host.ts';
import { FakeHost } from './fake-host.ts';

const drivers = ['freebsd', 'linux'] as const;
const modes = ['ifnet', 'netmap'] as const;

/** A frame of some bytes that tell it from others. */
const frame = (seed: number, bytes = 60): Uint8Array => Uint8Array.from({ length: bytes }, (_, i) => seed + 7 * i);

/** Receives until nothing comes. */
async function receiveAll(guest: StrictGuest): Promise<Uint8Array[]> {
  const all: Uint8Array[] = [];
  for (;;) {
    const some = await guest.receive();
    if (some.length === 0) return all;
    all.push(...some);
  }
}

for (const driver of drivers) {
  for (const mode of modes) {
    for (const vnetHdr of [false, true]) {
      test(`a host that keeps the rules satisfies ${driver} in ${mode} mode, VNET_HDR ${vnetHdr}`, async () => {
        const host = new FakeHost({ rings: 2, slots: 128, vnetHdr });
        const guest = new StrictGuest(host.memdev, host.ptnet, { driver, mode });
        await guest.attach();
        assert.deepEqual(guest.mac, [2, 0, 10, 11, 12, 13]);
        for (let life = 0; life < 2; life++) {
          await guest.up();
          assert.equal(guest.vnetHdrLen, vnetHdr ? 12 : 0);
          for (let n = 0; n < 40; n++) {
            const sent: Uint8Array[] = [frame(n), frame(n + 1, 5000), frame(n + 2, 2048 - guest.vnetHdrLen)];
            assert.equal(await guest.transmit(sent), 3);
            host.turn();
            assert.deepEqual(await receiveAll(guest), sent);
          }
          await guest.down();
        }
        await guest.up();
        await guest.detach();
        assert.deepEqual(host.ptnet.msix, []);
        assert.equal(host.ptnet.dma, undefined);
        host.close();
      });
    }
  }

  test(`a full ring: ${driver} asks for an interrupt, gets it and goes on`, async () => {
    const host = new FakeHost({ slots: 64 });
    host.turnAtKick = false;
    const guest = new StrictGuest(host.memdev, host.ptnet, { driver });
    await guest.attach();
    await guest.up();
    const frames = Array.from({ length: 100 }, (_, i) => frame(i));
    const took = await guest.transmit(frames);
    assert.equal(took, 63 - 34 + 1);
    assert.equal(await guest.interrupted([guest.txRing(0)], 1), false);
    host.turn();
    assert.equal(await guest.interrupted([guest.txRing(0)], 1000), true);
    assert.equal((await receiveAll(guest)).length, took);
    assert.equal(await guest.transmit(frames.slice(took, took + 5)), 5);
    await guest.detach();
    host.close();
  });
}

test('register accesses of both drivers, from attach to detach', async () => {
  for (const driver of drivers) {
    const host = new FakeHost();
    const guest = new StrictGuest(host.memdev, host.ptnet, { driver });
    await guest.attach();
    await guest.up();
    await guest.detach();
    const config = ['read NUM_TX_RINGS', 'read NUM_RX_RINGS', 'read NUM_TX_SLOTS', 'read NUM_RX_SLOTS'];
    assert.deepEqual(host.ptnet.log, [
      'write PTFEAT 1',
      'read PTFEAT',
      ...config.slice(0, 2),
      `write CSB_GH_BAH ${0x1}`,
      `write CSB_GH_BAL ${0x2345_6000}`,
      `write CSB_HG_BAH ${0x1}`,
      `write CSB_HG_BAL ${0x2345_7000}`,
      'read MAC_HI',
      'read MAC_LO',
      'read NIFP_OFS',
      ...config.slice(2),
      'read HOSTMEMID',
      'write VNET_HDR_LEN 12',
      'read VNET_HDR_LEN',
      ...config,
      'write VNET_HDR_LEN 12',
      'read VNET_HDR_LEN',
      'write PTCTL 1',
      'read PTCTL',
      'write PTCTL 2',
      'read PTCTL',
      'write CSB_GH_BAH 0',
      'write CSB_GH_BAL 0',
      'write CSB_HG_BAH 0',
      'write CSB_HG_BAL 0',
      'write PTCTL 2',
      'read PTCTL',
      'read PTCTL',
    ]);
    host.close();
  }
});

test('netmap mode: every NIOCTXSYNC kicks, wanted or not (R16)', async () => {
  const host = new FakeHost();
  const guest = new StrictGuest(host.memdev, host.ptnet, { driver: 'freebsd', mode: 'netmap' });
  await guest.attach();
  await guest.up();
  for (const ring of host.rings) nm_csb_ktoa.set.kern_need_kick(host.m, host.ktoa(ring), 0);
  await guest.transmit([frame(1)]);
  assert.equal(host.kicks, 1);
  assert.equal(nm_csb_atok.get.sync_flags(host.m, host.atok(host.rings[0]!)), 2);
  await guest.detach();
  host.close();
});

type Break = (host: FakeHost, rings: { tx: FakeRing; rx: FakeRing }) => void;

/** Puts packets into the rx ring and publishes them, after which the guest receives. */
const delivers =
  (spoil: (host: FakeHost, slot: number, rx: FakeRing) => void): Break =>
  (host, { rx }) => {
    const slot = rx.ring + netmap_ring.size + rx.hwtail * netmap_slot.size;
    host.deliver(rx, [frame(1)]);
    spoil(host, slot, rx);
    host.publish(rx);
  };

const register =
  (device: 'ptnet' | 'memdev', ofs: number, value: number): Break =>
  (host) =>
    void host[device].registers.set(ofs, value);

/** What a register answers whatever is written to it. */
const answers =
  (ofs: number, value: number): Break =>
  (host) => {
    const { onWrite } = host.ptnet;
    host.ptnet.onWrite = (at, v) => {
      onWrite(at, v);
      host.ptnet.registers.set(ofs, value);
    };
  };

/** Something wrong in the CSB after CREATE. */
const create =
  (action: Break): Break =>
  (host, rings) => {
    host.afterCreate = () => {
      action(host, rings);
      return 0;
    };
  };

const atAttach: Readonly<Record<string, readonly [Break, RegExp]>> = {
  'another device id': [(h) => h.ptnet.config.setUint16(PCI.DEVICE_ID, 1, true), /no ptnet/],
  'another class': [(h) => h.memdev.config.setUint8(PCI.CLASS + 2, 2), /no ptnetmap-memdev/],
  'BAR0 that is memory': [(h) => h.ptnet.config.setUint32(PCI.BAR0, 0, true), /BAR0 of fake ptnet .* no I\/O BAR/],
  'BAR1 that is I/O': [(h) => h.memdev.config.setUint32(PCI.BAR0 + 4, 1, true), /BAR1 of fake memdev .* no memory BAR/],
  'MEMID 0': [register('memdev', PTNET_MDEV_IO.MEMID, 0), /MEMID 0/],
  'PTFEAT with unknown bits': [answers(PTNET_IO.PTFEAT, 2), /PTFEAT: wanted 1, got 2/],
  'more rings than KICK registers': [register('ptnet', PTNET_IO.NUM_RX_RINGS, 32), /1 tx and 32 rx rings/],
  'no MSI-X capability': [(h) => h.ptnet.config.setUint16(PCI.STATUS, 0, true), /no MSI-X capability/],
  'a capability list without end': [(h) => h.ptnet.config.setUint16(PCI.MSIX_CAP, 0x4001, true), /has no end/],
  'an MSI-X table for fewer rings': [(h) => h.ptnet.config.setUint16(PCI.MSIX_CAP + 2, 0, true), /has 1 vectors/],
  'an MSI-X table in BAR0': [(h) => h.ptnet.config.setUint32(PCI.MSIX_CAP + 4, 0, true), /table are in BAR0/],
  'too few vectors': [(h) => void (h.ptnet.vectors = 1), /1 MSI-X vectors for 2 rings/],
  'a multicast MAC': [register('ptnet', PTNET_IO.MAC_HI, 0x0100), /no unicast address/],
  'another region': [register('ptnet', PTNET_IO.HOSTMEMID, 5), /HOSTMEMID 5 is not the memdev's MEMID 77/],
  'a header length without the feature': [answers(PTNET_IO.VNET_HDR_LEN, 12), /VNET_HDR_LEN 12, but PTFEAT 0/],
};

const atUp: Readonly<Record<string, readonly [Break, RegExp]>> = {
  'rings that change': [register('ptnet', PTNET_IO.NUM_TX_SLOTS, 64), /NUM_TX_SLOTS was 128 at attach, is 64 now/],
  'a region larger than BAR1': [register('memdev', PTNET_MDEV_IO.MEMSIZE_HI, 1), /MEMSIZE .* but BAR1 has/],
  'buffers outside the region': [register('memdev', PTNET_MDEV_IO.BUF_POOL_OFS, 2 ** 30), /in a region of/],
  'another API': [(h) => netmap_if.set.ni_version(h.m, h.nifp, 13), /ni_version is 13, expected 14/],
  'a bound host ring': [(h) => void (h.m.u64[(h.nifp + 64) >>> 3] = 128n), /ring_ofs of a host ring is 128/],
  'a ring outside the region': [(h) => void (h.m.u64[(h.nifp + 56) >>> 3] = 2n ** 33n), /outside the region/],
  'a ring not aligned': [(h) => void (h.m.u64[(h.nifp + 56) >>> 3]! += 8n), /not aligned/],
  'a wrong buf_ofs': [(h, { tx }) => netmap_ring.set.buf_ofs(h.m, tx.ring, 64n), /tx ring 0: buf_ofs is 64/],
  'a wrong nr_buf_size': [(h, { rx }) => netmap_ring.set.nr_buf_size(h.m, rx.ring, 64), /rx ring 0: nr_buf_size is 64/],
  'a ring of the other direction': [(h, { rx }) => netmap_ring.set.dir(h.m, rx.ring, 1), /rx ring 0: dir is 1/],
  'a slot without a buffer': [
    (h, { tx }) => netmap_slot.set.buf_idx(h.m, tx.ring + netmap_ring.size, 1),
    /tx ring 0 slot 0: buffer 1/,
  ],
  'a buffer with two owners': [
    (h, { tx }) => netmap_slot.set.buf_idx(h.m, tx.ring + 256, netmap_slot.get.buf_idx(h.m, tx.ring + 272)),
    /slot 1 has buffer \d+, which tx ring 0 slot 0 has too/,
  ],
  'a CREATE that fails': [(h) => void (h.afterCreate = () => 22), /PTCTL CREATE answered 22/],
  'a hwtail out of range': [create((h, r) => nm_csb_ktoa.set.hwtail(h.m, h.ktoa(r.tx), 128)), /out of range/],
  'positions out of order': [create((h, r) => nm_csb_atok.set.head(h.m, h.atok(r.rx), 3)), /rx ring 0: .*not in order/],
  'a new ring that is not new': [
    create((h, r) => nm_csb_ktoa.set.hwtail(h.m, h.ktoa(r.tx), 2)),
    /tx ring 0 is new, but/,
  ],
  'R6: a first hwtail inside a packet': [
    create((h, r) => {
      netmap_slot.set.len(h.m, r.rx.ring + netmap_ring.size, 60);
      netmap_slot.set.flags(h.m, r.rx.ring + netmap_ring.size, NS_MOREFRAG);
      nm_csb_ktoa.set.hwtail(h.m, h.ktoa(r.rx), 1);
    }),
    /hwtail 1 is inside a packet/,
  ],
  'no interrupts after CREATE': [
    create((h, r) => nm_csb_atok.set.appl_need_kick(h.m, h.atok(r.rx), 0)),
    /rx ring 0: appl_need_kick is 0 after CREATE/,
  ],
};

const inTraffic: Readonly<Record<string, readonly [Break, RegExp]>> = {
  'R6: hwtail out of range': [
    (h, { rx }) => nm_csb_ktoa.set.hwtail(h.m, h.ktoa(rx), 128),
    /rx ring 0: hwcur 3 hwtail 128/,
  ],
  'R6: hwcur past head': [(h, { rx }) => nm_csb_ktoa.set.hwcur(h.m, h.ktoa(rx), 100), /hwcur went from .* to 100/],
  'R6: rx hwtail inside a packet': [
    delivers((h, slot) => netmap_slot.set.flags(h.m, slot, 0x200 | NS_MOREFRAG)),
    /hwtail \d+ is inside a packet \(NS_MOREFRAG in slot/,
  ],
  'a received slot without bytes': [delivers((h, slot) => netmap_slot.set.len(h.m, slot, 0)), /0 bytes, buffer 2048/],
  'a received slot longer than its buffer': [delivers((h, slot) => netmap_slot.set.len(h.m, slot, 2049)), /2049 bytes/],
  'a received slot without a buffer': [delivers((h, slot) => netmap_slot.set.buf_idx(h.m, slot, 9999)), /buffer 9999/],
  'NS_INDIRECT in a received slot': [
    delivers((h, slot) => netmap_slot.set.flags(h.m, slot, NS_INDIRECT)),
    /NS_INDIRECT/,
  ],
  'fragments counted wrong': [
    delivers((h, slot) => netmap_slot.set.flags(h.m, slot, 0x300)),
    /1 slots, its flags say 3/,
  ],
  'a kern_need_kick that is neither 0 nor 1': [
    delivers((h, _slot, rx) => nm_csb_ktoa.set.kern_need_kick(h.m, h.ktoa(rx), 2)),
    /kern_need_kick is 2, 0 or 1 is legal/,
  ],
  'R6: the host writes atok': [(h, { rx }) => nm_csb_atok.set.head(h.m, h.atok(rx), 9), /changed atok head from/],
  'R6: the host takes the wish for interrupts back': [
    (h, { rx }) => nm_csb_atok.set.appl_need_kick(h.m, h.atok(rx), 0),
    /changed atok appl_need_kick from 1 to 0/,
  ],
  'R6: the host writes ring indexes': [(h, { rx }) => netmap_ring.set.tail(h.m, rx.ring, 9), /changed ring tail from/],
  'R6: the host writes num_slots': [
    (h, { rx }) => netmap_ring.set.num_slots(h.m, rx.ring, 9),
    /changed ring num_slots/,
  ],
};

for (const [stage, cases] of Object.entries({ attach: atAttach, up: atUp, traffic: inTraffic })) {
  for (const [name, [breakIt, pattern]] of Object.entries(cases)) {
    test(`${stage}: the strict guests catch ${name}`, async () => {
      for (const driver of drivers) {
        const host = new FakeHost();
        const rings = { tx: host.txRings[0]!, rx: host.rxRings[0]! };
        const guest = new StrictGuest(host.memdev, host.ptnet, { driver });
        if (stage === 'attach') breakIt(host, rings);
        else await guest.attach();
        if (stage === 'up') breakIt(host, rings);
        if (stage === 'traffic') {
          await guest.up();
          // Some traffic first, so that positions are not where they began.
          assert.equal(await guest.transmit([frame(1), frame(2), frame(3)]), 3);
          assert.equal((await receiveAll(guest)).length, 3);
          host.turn();
          breakIt(host, rings);
        }
        const next = { attach: () => guest.attach(), up: () => guest.up(), traffic: () => guest.receive() };
        await assert.rejects(next[stage as keyof typeof next](), pattern, driver);
        guest.abandon();
        host.close();
      }
    });
  }
}

test('R6: a hwtail that goes backwards is caught', async () => {
  const host = new FakeHost();
  const guest = new StrictGuest(host.memdev, host.ptnet, { driver: 'linux' });
  await guest.attach();
  await guest.up();
  assert.equal(await guest.transmit([frame(1), frame(2), frame(3)]), 3);
  nm_csb_ktoa.set.hwtail(host.m, host.ktoa(host.txRings[0]!), 0);
  await assert.rejects(guest.transmit([frame(4)]), /tx ring 0: hwtail went from 1 to 0, which is backwards/);
  guest.abandon();
  host.close();
});

test('a VirtIO header that crosses its slot is caught', async () => {
  const host = new FakeHost({ vnetHdr: true });
  const guest = new StrictGuest(host.memdev, host.ptnet, { driver: 'freebsd' });
  await guest.attach();
  await guest.up();
  host.deliver(host.rxRings[0]!, [frame(1, 8), frame(2)]);
  host.publish(host.rxRings[0]!);
  await assert.rejects(guest.receive(), /8 bytes, the VirtIO header of 12 crosses the slot/);
  guest.abandon();
  host.close();
});

test('R13: an interrupt that was asked for and does not come is caught', async () => {
  const host = new FakeHost();
  const guest = new StrictGuest(host.memdev, host.ptnet, { driver: 'linux' });
  await guest.attach();
  await guest.up();
  assert.equal((await guest.receive()).length, 0);
  const rx = host.rxRings[0]!;
  host.deliver(rx, [frame(1)]);
  nm_csb_ktoa.set.hwtail(host.m, host.ktoa(rx), rx.hwtail);
  await assert.rejects(guest.interrupted([guest.rxRing(0)], 1), /hwtail moved past 0, and no interrupt came/);
  guest.abandon();
  host.close();
});

test('R18: a DELETE without a last sync, positions lost by the next CREATE, writes after detach are caught', async () => {
  const attachedGuest = async (host: FakeHost): Promise<StrictGuest> => {
    const guest = new StrictGuest(host.memdev, host.ptnet, { driver: 'freebsd' });
    await guest.attach();
    await guest.up();
    await guest.transmit([frame(1)]);
    return guest;
  };
  const lazy = new FakeHost();
  lazy.turnAtKick = false;
  const first = await attachedGuest(lazy);
  lazy.running = false;
  await assert.rejects(first.down(), /DELETE left hwcur 0 behind head 1/);

  const forgetful = new FakeHost();
  const second = await attachedGuest(forgetful);
  await second.down();
  Object.assign(forgetful.rings[0]!, { hwcur: 0, rcur: 0, hwtail: 127 });
  await assert.rejects(second.up(), /was deleted at head 1 cur 1, now it has head 0/);

  const late = new FakeHost();
  const third = await attachedGuest(late);
  const csb = third.txRing(0).at.ktoa;
  const { read32 } = late.ptnet;
  late.ptnet.read32 = (ofs) => {
    if (late.csb < 0) nm_csb_ktoa.set.hwtail(third.options.space.arena.m, csb, 1);
    return read32.call(late.ptnet, ofs);
  };
  await assert.rejects(third.detach(), /wrote to byte 4100 of the CSB pages/);
  for (const [guest, host] of [
    [first, lazy],
    [second, forgetful],
    [third, late],
  ] as const) {
    guest.abandon();
    host.close();
  }
});

test('a ring too small for a 64 KiB segment is caught in ifnet mode only', async () => {
  for (const mode of modes) {
    const host = new FakeHost({ slots: 32 });
    const guest = new StrictGuest(host.memdev, host.ptnet, { driver: 'freebsd', mode });
    await guest.attach();
    if (mode === 'ifnet') await assert.rejects(guest.up(), /needs 34 free slots, tx rings have 32/);
    else await guest.up();
    guest.abandon();
    host.close();
  }
});

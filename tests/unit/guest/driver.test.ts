/** The driver on a fake host: its register accesses, what it refuses of a host, and its side of the protocol of rings. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  NR_DIR_TX,
  netmap_if,
  netmap_ring,
  netmap_slot,
  nm_csb_atok,
  nm_csb_ktoa,
  PCI,
  PTNET_IO,
  PTNET_MDEV_IO,
} from '../../../src/abi/index.ts';
import { PtnetDriver } from '../../../src/guest/driver.ts';
import { Memdev } from '../../../src/guest/memdev.ts';
import { errno, SysError } from '../../../src/os/index.ts';
import { FakeHost } from './fake-host.ts';

async function attached(host: FakeHost, vnetHdr = false): Promise<{ driver: PtnetDriver; memdev: Memdev }> {
  const memdev = await Memdev.attach(host.memdev);
  const driver = await PtnetDriver.attach(host.ptnet, memdev, { vnetHdr });
  return { driver, memdev };
}

/** Whatever an attach or create fails with, it leaves no memory mapped. */
async function rejectsWith(host: FakeHost, pattern: RegExp): Promise<void> {
  const memdev = await Memdev.attach(host.memdev);
  const before = memdev.space.freeBytes;
  await assert.rejects(async () => {
    const driver = await PtnetDriver.attach(host.ptnet, memdev);
    try {
      await driver.create();
    } catch (e) {
      await driver.detach();
      throw e;
    }
  }, pattern);
  assert.equal(memdev.space.freeBytes, before);
  assert.equal(host.ptnet.dma, undefined);
  memdev.detach();
  host.close();
}

test('the driver makes its register accesses in the order of ptnet_attach', async () => {
  const host = new FakeHost();
  const { driver, memdev } = await attached(host);
  await driver.create();
  await driver.detach();
  const csbRegisters = ['CSB_GH_BAH', 'CSB_GH_BAL', 'CSB_HG_BAH', 'CSB_HG_BAL'];
  assert.deepEqual(host.ptnet.log, [
    'write PTFEAT 0',
    'read PTFEAT',
    'read NUM_TX_RINGS',
    'read NUM_RX_RINGS',
    `write CSB_GH_BAH ${0x1}`,
    `write CSB_GH_BAL ${0x2345_6000}`,
    `write CSB_HG_BAH ${0x1}`,
    `write CSB_HG_BAL ${0x2345_7000}`,
    'read MAC_HI',
    'read MAC_LO',
    'read NIFP_OFS',
    'read NUM_TX_SLOTS',
    'read NUM_RX_SLOTS',
    'read HOSTMEMID',
    'write VNET_HDR_LEN 0',
    'read VNET_HDR_LEN',
    'write VNET_HDR_LEN 0',
    'read VNET_HDR_LEN',
    'write PTCTL 1',
    'read PTCTL',
    'write PTCTL 2',
    'read PTCTL',
    ...csbRegisters.map((name) => `write ${name} 0`),
  ]);
  assert.equal(host.ptnet.config.getUint16(PCI.COMMAND, true), 7);
  assert.deepEqual(host.ptnet.msix, []);
  memdev.detach();
  host.close();
});

test('attach reads name, MAC and sizes; the eventfds of tx and of rx rings go to their vectors', async () => {
  const host = new FakeHost({ rings: 2, slots: 64 });
  const { driver, memdev } = await attached(host);
  assert.deepEqual(host.ptnet.msix, [driver.txEventfd, driver.txEventfd, driver.rxEventfd, driver.rxEventfd]);
  await driver.create();
  assert.equal(driver.mac, '02:00:0a:0b:0c:0d');
  assert.equal(driver.name, 'fake0');
  assert.equal(driver.vnetHdrLen, 0);
  assert.deepEqual(
    [...driver.txRings, ...driver.rxRings].map((r) => [r.name, r.numSlots, r.rhead, r.rtail]),
    [
      ['tx ring 0', 64, 0, 63],
      ['tx ring 1', 64, 0, 63],
      ['rx ring 0', 64, 0, 0],
      ['rx ring 1', 64, 0, 0],
    ],
  );
  await driver.detach();
  memdev.detach();
  host.close();
});

test('VNET_HDR: asked for and granted, asked for and refused, not asked for', async () => {
  for (const [granted, wanted, length] of [
    [true, true, 12],
    [false, true, 0],
    [true, false, 0],
  ] as const) {
    const host = new FakeHost({ vnetHdr: granted });
    const { driver, memdev } = await attached(host, wanted);
    await driver.create();
    assert.equal(driver.vnetHdrLen, length);
    await driver.detach();
    memdev.detach();
    host.close();
  }
});

test('a device with other ids or another class is refused', async () => {
  const host = new FakeHost();
  await assert.rejects(Memdev.attach(host.ptnet), /is 1b36:000d class 20000, no ptnetmap-memdev/);
  const memdev = await Memdev.attach(host.memdev);
  await assert.rejects(PtnetDriver.attach(host.memdev, memdev), /no ptnet/);
  memdev.detach();
  host.close();
});

test('R1: a memdev whose file is shorter than the region is refused', async () => {
  const host = new FakeHost();
  host.memdev.memory = { ...host.memdev.memory, bytes: 4096 };
  await assert.rejects(Memdev.attach(host.memdev), /gives 4096 bytes of a region/);
  host.close();
});

test('a memdev whose buffers leave the region is refused', async () => {
  const host = new FakeHost();
  host.memdev.registers.set(PTNET_MDEV_IO.BUF_POOL_OBJNUM, 100_000);
  await assert.rejects(Memdev.attach(host.memdev), /the host says that its region has/);
  host.close();
});

const nonsense: readonly (readonly [string, (host: FakeHost) => void, RegExp])[] = [
  ['no rings', (h) => zero(h, 'NUM_TX_RINGS', 'NUM_RX_RINGS'), /says 0 tx and 0 rx rings/],
  ['more rings than KICK registers', (h) => h.ptnet.registers.set(PTNET_IO.NUM_TX_RINGS, 32), /says 32 tx/],
  ['too few vectors', (h) => void (h.ptnet.vectors = 1), /gives 1 MSI-X vectors for 2 rings/],
  ['a netmap_if outside the region', (h) => h.ptnet.registers.set(PTNET_IO.NIFP_OFS, 2 ** 31), /netmap_if is at/],
  ['another region', (h) => h.ptnet.registers.set(PTNET_IO.HOSTMEMID, 78), /region 78 .* memdev has region 77/],
  ['an unasked VNET_HDR_LEN', (h) => fixed(h, PTNET_IO.VNET_HDR_LEN, 12), /VNET_HDR_LEN of 0 with 12/],
  ['an unknown API', (h) => netmap_if.set.ni_version(h.m, h.nifp, 11), /speaks netmap API 11/],
  ['other slots than in the ring', (h) => h.ptnet.registers.set(PTNET_IO.NUM_TX_SLOTS, 64), /num_slots 128/],
  ['a buf_ofs that is no buffer pool', (h) => netmap_ring.set.buf_ofs(h.m, h.rings[0]!.ring, 0n), /buf_ofs 0/],
  ['a ring of the other direction', (h) => netmap_ring.set.dir(h.m, h.rings[0]!.ring, 0), /says dir 0 in tx ring 0/],
  ['a ring outside the region', (h) => void (h.m.u64[(h.nifp + 56) >>> 3] = 2n ** 40n), /tx ring 0 of 128 slots is at/],
  ['a CREATE that fails', (h) => void (h.afterCreate = () => 6), /CREATE of the rings of fake ptnet: ENXIO/],
  ['a head out of range', (h) => csb(h, nm_csb_atok.set.head, 'atok', 128), /put head of tx ring 0 at 128/],
  ['a hwtail out of range', (h) => csb(h, nm_csb_ktoa.set.hwtail, 'ktoa', 4096), /tx ring 0 at hwcur 0 hwtail 4096/],
  ['positions out of order', (h) => csb(h, nm_csb_ktoa.set.hwtail, 'ktoa', 0, 5), /tx ring 0 at head 5 cur 5/],
];

function zero(host: FakeHost, ...names: ('NUM_TX_RINGS' | 'NUM_RX_RINGS')[]): void {
  for (const name of names) host.ptnet.registers.set(PTNET_IO[name], 0);
}
function fixed(host: FakeHost, ofs: number, value: number): void {
  const { onWrite } = host.ptnet;
  host.ptnet.onWrite = (at, v) => {
    onWrite(at, v);
    host.ptnet.registers.set(ofs, value);
  };
}
/** Has CREATE leave a value in the first ring's CSB. */
function csb(host: FakeHost, set: FakeSetter, half: 'atok' | 'ktoa', value: number, head?: number): void {
  host.afterCreate = () => {
    const tx = host.rings[0]!;
    set(host.m, half === 'atok' ? host.atok(tx) : host.ktoa(tx), value);
    if (head !== undefined) {
      nm_csb_atok.set.head(host.m, host.atok(tx), head);
      nm_csb_atok.set.cur(host.m, host.atok(tx), head);
    }
    return 0;
  };
}
type FakeSetter = typeof nm_csb_atok.set.head;

for (const [name, breakIt, pattern] of nonsense) {
  test(`nonsense of the host is an error that says so: ${name}`, async () => {
    const host = new FakeHost();
    breakIt(host);
    await rejectsWith(host, pattern);
  });
}

test('R6: sync publishes cur and head, takes hwtail and hwcur; positions outlive DELETE and CREATE', async () => {
  const host = new FakeHost({ slots: 8 });
  host.turnAtKick = false;
  const { driver, memdev } = await attached(host);
  await driver.create();
  const tx = driver.txRings[0]!;
  const { m } = memdev.space.arena;
  netmap_slot.set.len(m, tx.ring + netmap_ring.size, 60);
  netmap_ring.set.head(m, tx.ring, 3);
  netmap_ring.set.cur(m, tx.ring, 5);
  assert.equal(tx.sync(), true, 'the host wants a kick');
  const fake = host.rings[0]!;
  assert.equal(nm_csb_atok.get.head(host.m, host.atok(fake)), 3);
  assert.equal(nm_csb_atok.get.cur(host.m, host.atok(fake)), 5);
  nm_csb_ktoa.set.kern_need_kick(host.m, host.ktoa(fake), 0);
  netmap_ring.set.head(m, tx.ring, 4);
  assert.equal(tx.sync(), false, 'the host is awake');
  host.turn();
  assert.equal(tx.rtail, 7);
  tx.sync();
  assert.equal(tx.rtail, 3);
  assert.equal(netmap_ring.get.tail(m, tx.ring), 3);
  await driver.destroy();
  await driver.create();
  assert.deepEqual([driver.txRings[0]!.rhead, driver.txRings[0]!.rtail], [4, 3]);
  await driver.detach();
  memdev.detach();
  host.close();
});

test('an application that puts head or cur out of order is told, and the ring is put right', async () => {
  const host = new FakeHost({ slots: 8 });
  const { driver, memdev } = await attached(host);
  await driver.create();
  const tx = driver.txRings[0]!;
  const { m } = memdev.space.arena;
  for (const [head, cur] of [
    [8, 8],
    [0, 8],
    [4, 3],
    [0xffffffff, 0],
  ] as const) {
    netmap_ring.set.head(m, tx.ring, head);
    netmap_ring.set.cur(m, tx.ring, cur);
    assert.throws(() => tx.sync(), { code: 'EINVAL', message: /tx ring 0: head .* were put back to 0 and 0/ });
    assert.deepEqual([netmap_ring.get.head(m, tx.ring), netmap_ring.get.cur(m, tx.ring)], [0, 0]);
  }
  assert.equal(tx.dir, NR_DIR_TX);
  await driver.detach();
  memdev.detach();
  host.close();
});

test('R13: arm and disarm write appl_need_kick once', async () => {
  const host = new FakeHost();
  const { driver, memdev } = await attached(host);
  await driver.create();
  const rx = driver.rxRings[0]!;
  const atok = host.atok(host.rxRings[0]!);
  assert.equal(nm_csb_atok.get.appl_need_kick(host.m, atok), 0, 'nobody waits');
  rx.arm();
  assert.equal(nm_csb_atok.get.appl_need_kick(host.m, atok), 1);
  rx.disarm();
  assert.equal(nm_csb_atok.get.appl_need_kick(host.m, atok), 0);
  await driver.detach();
  memdev.detach();
  host.close();
});

test('a host that goes while the driver gives its device back is no error; any other refusal is', async () => {
  for (const [code, pattern] of [
    [errno.ECONNRESET, undefined],
    [errno.EIO, /PTCTL/],
  ] as const) {
    const host = new FakeHost();
    const { driver, memdev } = await attached(host);
    await driver.create();
    host.ptnet.onWrite = (ofs): void => {
      if (ofs === PTNET_IO.PTCTL) throw new SysError('write of PTCTL', code);
    };
    const left = memdev.space.freeBytes;
    if (pattern === undefined) await driver.detach();
    else await assert.rejects(driver.detach(), pattern);
    assert.ok(memdev.space.freeBytes > left, 'the CSB is not mapped any more');
    memdev.detach();
    host.close();
  }
});

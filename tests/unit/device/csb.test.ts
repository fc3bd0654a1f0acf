/** The CSB protocol: what CREATE refuses and why, what it fills, and everything that stops the rings. */
import assert from 'node:assert/strict';
import { closeSync, ftruncateSync, mkdtempSync, openSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { nm_csb_atok, nm_csb_ktoa, PTNET_IO } from '../../../src/abi/index.ts';
import { closeFd, errno, eventfd, F_SEAL_GROW, memfd } from '../../../src/os/index.ts';
import { hugeMemfd } from './hostile.ts';
import {
  type DeviceRig,
  guestMemory,
  openFds,
  RawGuest,
  type RigPort,
  SharedFile,
  SharedRing,
  withRig,
  type Way,
} from './rig.ts';

const IOVA = 0x10_0000n;
const KTOA = 0x10_1000n;
/** From fcntl.h; Node has no name for it. */
const O_PATH = 0x20_0000;

interface Case {
  readonly name: string;
  readonly errno: number;
  readonly says: RegExp;
  readonly setUp: (guest: RawGuest) => Promise<void>;
}

const csbOf = async (guest: RawGuest, atok = IOVA, ktoa = KTOA): Promise<void> => {
  await guest.setCsb(atok, ktoa);
  guest.prepare();
};

const refused: readonly Case[] = [
  {
    name: 'CREATE before the CSB',
    errno: errno.ENXIO,
    says: /CREATE without CSB addresses: refused with ENXIO/,
    setUp: (guest) => guest.map(),
  },
  {
    name: 'only one half of the CSB',
    errno: errno.ENXIO,
    says: /without CSB addresses/,
    setUp: async (guest) => {
      await guest.map();
      await guest.setCsb(IOVA, 0n);
    },
  },
  {
    name: 'addresses in no memory that was shared',
    errno: errno.ENXIO,
    says: /CSB page atok at guest address 0x100000: not in memory that the client shares \(is its memory share=on\?\)/,
    setUp: csbOf,
  },
  {
    name: 'memory without a descriptor',
    errno: errno.ENXIO,
    says: /atok at guest address 0x100000: not in memory/,
    setUp: async (guest) => {
      await guest.client.dmaMap({ iova: IOVA, size: 8192n, flags: 3 });
      await csbOf(guest);
    },
  },
  {
    name: 'a page of which half is unmapped',
    errno: errno.ENXIO,
    says: /ktoa at guest address 0x101000: not in memory/,
    setUp: async (guest) => {
      await guest.map(IOVA, 0n, 6144n);
      await csbOf(guest);
    },
  },
  {
    name: 'addresses beyond 2^63',
    errno: errno.ENXIO,
    says: /atok at guest address 0xfffffffffffff000: not in memory/,
    setUp: async (guest) => {
      await guest.map();
      await csbOf(guest, 0xffff_ffff_ffff_f000n, KTOA);
    },
  },
  {
    name: 'addresses that are not page aligned',
    errno: errno.EINVAL,
    says: /CSB addresses are not page aligned/,
    setUp: async (guest) => {
      await guest.map();
      await csbOf(guest, IOVA + 64n, KTOA);
    },
  },
  {
    name: 'aligned addresses on a file offset that is not',
    errno: errno.EINVAL,
    says: /atok .*not page aligned in its file/,
    setUp: async (guest) => {
      await guest.map(IOVA, 512n);
      await csbOf(guest);
    },
  },
  {
    name: 'R1: memory not sealed against shrinking',
    errno: errno.EPERM,
    says: /not sealed against shrinking; use memory-backend-memfd .* or trust this client's memory .*trustUnsealedMemory/,
    setUp: async (guest) => {
      const fd = memfd('unsealed', 65536, F_SEAL_GROW);
      await guest.client.dmaMap({ iova: IOVA, size: 65536n, fd, flags: 3 });
      closeFd(fd);
      await csbOf(guest);
    },
  },
  {
    name: 'R1: a descriptor that is no memory (eventfd)',
    errno: errno.EPERM,
    says: /not sealed/,
    setUp: async (guest) => {
      const fd = eventfd();
      await guest.client.dmaMap({ iova: IOVA, size: 65536n, fd, flags: 3 });
      closeFd(fd);
      await csbOf(guest);
    },
  },
  {
    name: 'R1: memory that ends before the page',
    errno: errno.EFAULT,
    says: /ktoa .*offset 4096 is beyond the end of its file \(4096 bytes\)/,
    setUp: async (guest) => {
      const small = guestMemory(4096);
      await guest.client.dmaMap({ iova: IOVA, size: 65536n, fd: small.fd, flags: 3 });
      small.close();
      await csbOf(guest);
    },
  },
  {
    name: 'R1: memory that ends within the page',
    errno: errno.EFAULT,
    says: /beyond the end of its file \(6144 bytes\)/,
    setUp: async (guest) => {
      const small = guestMemory(6144);
      await guest.client.dmaMap({ iova: IOVA, size: 65536n, fd: small.fd, flags: 3 });
      small.close();
      await csbOf(guest);
    },
  },
  {
    name: 'a descriptor that may only be read',
    errno: errno.EFAULT,
    says: /mmap\(fd \d+, offset 0, 4096 bytes\): EACCES/,
    setUp: async (guest) => {
      const fd = openSync(`/proc/self/fd/${guest.memory.fd}`, 'r');
      await guest.client.dmaMap({ iova: IOVA, size: 8192n, fd, flags: 3 });
      closeSync(fd);
      await csbOf(guest);
    },
  },
  {
    name: 'a descriptor that only names its file (O_PATH)',
    errno: errno.EFAULT,
    says: /atok at guest address 0x100000: fcntl\(\d+, F_GET_SEALS\): EBADF/,
    setUp: async (guest) => {
      const fd = openSync(`/proc/self/fd/${guest.memory.fd}`, O_PATH);
      await guest.client.dmaMap({ iova: IOVA, size: 8192n, fd, flags: 3 });
      closeSync(fd);
      await csbOf(guest);
    },
  },
  {
    name: 'memory that is not the guest’s own (share=off)',
    errno: errno.EINVAL,
    says: /kern_need_kick is not 1 in every ktoa entry, so the CSB pages seen here are not the guest's: start QEMU with share=on/,
    setUp: async (guest) => {
      await guest.map();
      await csbOf(guest);
      guest.memory.setU32(guest.ktoa(1) + nm_csb_ktoa.ofs.kern_need_kick, 0);
    },
  },
  {
    name: 'memory unmapped between the addresses and CREATE',
    errno: errno.ENXIO,
    says: /not in memory that the client shares/,
    setUp: async (guest) => {
      await guest.map();
      await csbOf(guest);
      await guest.client.dmaUnmap({ iova: 0n, size: 0n, all: true });
    },
  },
  {
    name: 'R1: a huge page, for a device that takes none',
    errno: errno.EINVAL,
    says: /lies on a huge page of 2097152 bytes; this device takes pages of up to 4096 bytes/,
    setUp: async (guest) => {
      const fd = hugeMemfd(2 ** 21);
      await guest.client.dmaMap({ iova: IOVA, size: 2n ** 21n, fd, flags: 3 });
      closeFd(fd);
      await csbOf(guest);
    },
  },
];

for (const way of ['memory', 'socket'] as const satisfies readonly Way[]) {
  describe(`CREATE refused, client over ${way}`, () => {
    for (const c of refused) {
      test(c.name, () =>
        withRig(async (rig) => {
          const port = rig.addPort();
          const before = openFds();
          const guest = new RawGuest(await rig.connect(port.device, way));
          await c.setUp(guest);
          assert.equal(await guest.create(), c.errno);
          assert.equal(port.warnings.length, 1);
          assert.match(port.warnings[0]!, c.says);
          assert.equal(port.device.state.running, false);
          // The same client puts it right.
          await guest.client.dmaUnmap({ iova: 0n, size: 0n, all: true });
          await guest.start();
          assert.equal(port.device.state.running, true);
          guest.client.close();
          await rig.settled();
          guest.memory.close();
          assert.equal(openFds(), before, 'no descriptor is left');
        }),
      );
    }
  });
}

test('R1: the configuration can trust memory that is not sealed; truncated later, it is seen as too small', () =>
  withRig(async (rig) => {
    const { device, warnings } = rig.addPort({ config: { trustUnsealedMemory: true } });
    const dir = mkdtempSync(join(tmpdir(), 'ptnet-unsealed-'));
    const fd = openSync(join(dir, 'ram'), 'w+');
    ftruncateSync(fd, 65536);
    const guest = new RawGuest(await rig.connect(device), 2, new SharedFile(fd, 65536));
    await guest.start();
    assert.equal(await guest.destroy(), 0);
    ftruncateSync(fd, 4096);
    guest.prepare = () => undefined;
    assert.equal(await guest.create(), errno.EFAULT);
    assert.match(warnings[0]!, /beyond the end of its file/);
    closeSync(fd);
    rmSync(dir, { recursive: true });
  }));

test('R1: huge pages: a CSB on one is mapped with it, or the error says that there is none', () =>
  withRig(async (rig) => {
    const { device, warnings } = rig.addPort({ csbWindow: 2 ** 21 });
    const fd = hugeMemfd(2 ** 21);
    const guest = new RawGuest(await rig.connect(device), 2, new SharedFile(fd, 2 ** 21));
    await guest.client.dmaMap({ iova: IOVA, size: 2n ** 21n, fd, flags: 3 });
    await guest.setCsb(IOVA, KTOA);
    // read and write do not work on such files: the wishes cannot be set, which CREATE reports in its own way.
    const status = await guest.create();
    if (status === errno.EFAULT) assert.match(warnings[0]!, /mmap\(fd \d+, offset 0, 2097152 bytes\): ENOMEM/);
    else assert.match(warnings[0]!, /kern_need_kick is not 1/);
    closeFd(fd);
  }));

async function running(
  rig: DeviceRig,
  add: Parameters<DeviceRig['addPort']>[0] = {},
): Promise<RigPort & { guest: RawGuest }> {
  const port = rig.addPort(add);
  const guest = new RawGuest(await rig.connect(port.device));
  await guest.start();
  return { ...port, guest };
}

test('CREATE fills the CSB; while running it answers 0 and changes nothing', () =>
  withRig(async (rig) => {
    const { guest } = await running(rig);
    const word = (at: number): number => guest.memory.u32(at);
    const entry = (ring: number): number[] => [
      word(guest.atok(ring) + nm_csb_atok.ofs.head),
      word(guest.atok(ring) + nm_csb_atok.ofs.cur),
      word(guest.atok(ring) + nm_csb_atok.ofs.appl_need_kick),
      word(guest.atok(ring) + nm_csb_atok.ofs.sync_flags),
      guest.hwcur(ring),
      guest.hwtail(ring),
      word(guest.ktoa(ring) + nm_csb_ktoa.ofs.kern_need_kick),
    ];
    assert.deepEqual(entry(0), [0, 0, 1, 1, 0, 31, 1]);
    assert.deepEqual(entry(1), [0, 0, 1, 1, 0, 0, 1]);
    guest.memory.setU32(guest.atok(0) + nm_csb_atok.ofs.sync_flags, 77);
    const before = rig.commands.length;
    assert.equal(await guest.create(), 0, 'R18: CREATE while running');
    assert.equal(rig.commands.length, before);
    assert.equal(word(guest.atok(0) + nm_csb_atok.ofs.sync_flags), 77);
  }));

test('R18: DELETE when nothing runs answers 0; an unknown command EINVAL', () =>
  withRig(async (rig) => {
    const guest = new RawGuest(await rig.connect(rig.addPort().device));
    assert.equal(await guest.destroy(), 0);
    assert.equal(await guest.destroy(), 0);
    for (const command of [0, 3, 0xffffffff]) assert.equal(await guest.control(command), errno.EINVAL);
    await guest.start();
    assert.equal(await guest.control(9), errno.EINVAL);
    assert.equal(rig.ports[0]!.device.state.running, true);
  }));

const frame = (from: number, to: number, tag: number): Uint8Array =>
  Uint8Array.of(2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from, 0x88, 0xb5, ...Array.from({ length: 46 }, (_, i) => tag + i));

test('R18: DELETE does one last sync, and positions live on across DELETE and CREATE', () =>
  withRig(async (rig) => {
    const a = await running(rig);
    const b = await running(rig);
    const tx = new SharedRing(a.region, a.registration, a.registration.txRings[0]!);
    const rx = new SharedRing(b.region, b.registration, b.registration.rxRings[0]!);
    for (let i = 0; i < 3; i++) tx.put(i, frame(1, 2, i));
    a.guest.setHead(0, 3);
    assert.equal(await a.guest.destroy(), 0, 'nobody took a turn: what was pending is sent by the last sync');
    assert.equal(b.guest.hwtail(1), 3);
    assert.deepEqual([...rx.get(2)], [...frame(1, 2, 2)]);
    b.guest.setHead(1, 2);
    assert.equal(await b.guest.destroy(), 0);
    for (const guest of [a.guest, b.guest]) {
      guest.prepare();
      assert.equal(await guest.create(), 0);
    }
    assert.deepEqual([a.guest.head(0), a.guest.hwcur(0), a.guest.hwtail(0)], [3, 3, 2]);
    assert.deepEqual([b.guest.head(1), b.guest.hwcur(1), b.guest.hwtail(1)], [2, 2, 3]);
  }));

const stops: readonly (readonly [string, (guest: RawGuest) => Promise<unknown>])[] = [
  ['DELETE', (g) => g.destroy()],
  ['DMA_UNMAP of everything', (g) => g.client.dmaUnmap({ iova: 0n, size: 0n, all: true })],
  ['DMA_UNMAP of 64 bits of addresses', (g) => g.client.dmaUnmap({ iova: 0x1000n, size: 0xffff_ffff_ffff_e000n })],
  ['DMA_UNMAP of the last byte of atok', (g) => g.client.dmaUnmap({ iova: IOVA + 4095n, size: 1n })],
  ['DMA_UNMAP of the first byte of ktoa', (g) => g.client.dmaUnmap({ iova: KTOA, size: 1n })],
  ['bus master off', (g) => g.setCommand(3)],
  ['RESET', (g) => g.client.reset()],
  ['CSB_GH_BAL', (g) => g.write(PTNET_IO.CSB_GH_BAL, 0)],
  ['CSB_HG_BAL', (g) => g.write(PTNET_IO.CSB_HG_BAL, 0x10_1000)],
];
for (const [name, stop] of stops) {
  test(`R18: ${name} stops the rings, and is answered when the datapath has said so`, () =>
    withRig(async (rig) => {
      const { device, guest } = await running(rig);
      rig.hold = new Set(['stop']);
      let answered = false;
      const done = stop(guest).then(() => (answered = true));
      for (let i = 0; i < 20; i++) await new Promise((resolve) => setImmediate(resolve));
      assert.equal(answered, false, 'no answer before the datapath’s');
      assert.equal(device.state.running, true);
      rig.release();
      await done;
      assert.equal(device.state.running, false);
      const tail = guest.hwtail(0);
      guest.setHead(0, 5);
      rig.kloop.turn();
      assert.equal(guest.hwtail(0), tail, 'what the guest writes now is not seen');
    }));
}

test('R18: CREATE is answered when the datapath has said so', () =>
  withRig(async (rig) => {
    const { device } = rig.addPort();
    const guest = new RawGuest(await rig.connect(device));
    rig.hold = new Set(['start']);
    let answered = false;
    const done = guest.start().then(() => (answered = true));
    for (let i = 0; i < 50; i++) await new Promise((resolve) => setImmediate(resolve));
    assert.equal(answered, false);
    rig.release();
    await done;
    assert.equal(device.state.running, true);
  }));

test('R18: end of file stops the rings before the device is free for the next client', () =>
  withRig(async (rig) => {
    const { device, guest } = await running(rig);
    guest.client.close();
    await rig.settled();
    assert.deepEqual(device.state, { attached: false, running: false, vnetHdrLen: 0 });
    assert.ok(rig.commands.includes('stop') && rig.commands.includes('reset'));
  }));

test('unmaps that do not touch the CSB leave the rings running; so does a client that maps more', () =>
  withRig(async (rig) => {
    const { device, guest } = await running(rig);
    await guest.client.dmaUnmap({ iova: IOVA + 8192n, size: 0xffff_0000n });
    await guest.client.dmaUnmap({ iova: 0x5000n, size: 0x1000n });
    await guest.client.dmaMap({ iova: 0x5000_0000n, size: 4096n, fd: guest.memory.fd, flags: 3 });
    await assert.rejects(guest.client.dmaMap({ iova: IOVA, size: 4096n, fd: guest.memory.fd, flags: 3 }), /EEXIST/);
    assert.equal(device.state.running, true);
  }));

test('a client’s DMA_MAPs are bounded, and with them the descriptors that it makes the daemon hold', () =>
  withRig(async (rig) => {
    const { device } = rig.addPort({ config: { maxDmaMaps: 8 } });
    const { client, memory } = new RawGuest(await rig.connect(device));
    const before = openFds();
    for (let i = 0; i < 8; i++) await client.dmaMap({ iova: BigInt(i * 8192), size: 4096n, fd: memory.fd, flags: 3 });
    for (let i = 8; i < 20; i++) {
      await assert.rejects(client.dmaMap({ iova: BigInt(i * 8192), size: 4096n, fd: memory.fd, flags: 3 }), /ENOSPC/);
    }
    assert.equal(openFds(), before + 8);
    await client.dmaUnmap({ iova: 0n, size: 0n, all: true });
    assert.equal(openFds(), before);
  }));

test('both halves of the CSB on one page: the guest’s own loss', () =>
  withRig(async (rig) => {
    const { device, warnings } = rig.addPort();
    const guest = new RawGuest(await rig.connect(device));
    await guest.map();
    await guest.setCsb(IOVA, IOVA);
    for (let i = 0; i < 2; i++) guest.memory.setU32(64 * i + nm_csb_ktoa.ofs.kern_need_kick, 1);
    assert.equal(await guest.create(), 0);
    for (let head = 0; head < 70; head++) {
      guest.memory.setU32(0, head);
      rig.kloop.turn();
    }
    assert.deepEqual(rig.traps, []);
    assert.equal(await guest.destroy(), 0);
    assert.deepEqual(warnings, []);
  }));

test('R2: a trap in the datapath: CREATE on that switch is refused with EIO, and the log says why', () =>
  withRig(async (rig) => {
    const { guest } = await running(rig);
    const other = rig.addPort();
    rig.datapath.serve = () => {
      throw new WebAssembly.RuntimeError('memory access out of bounds');
    };
    rig.kloop.turn();
    assert.deepEqual(rig.traps, ['memory access out of bounds']);
    const second = new RawGuest(await rig.connect(other.device));
    await second.map();
    await csbOf(second);
    assert.equal(await second.create(), errno.EIO);
    assert.match(other.warnings[0]!, /CREATE refused with EIO: the switch of this port was stopped by a fault/);
    assert.equal(await guest.destroy(), 0, 'the other leaves in good order');
    guest.client.close();
  }));

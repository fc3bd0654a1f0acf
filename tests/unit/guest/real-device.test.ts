/** The strict guests on the daemon's devices, over the sockets that QEMU would use: two VMs on one VALE switch. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, type TestContext, test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { netmap_ring, netmap_slot, PTNET_IO } from '../../../src/abi/index.ts';
import type { PciDevice, StrictGuestOptions } from '../../../src/guest/index.ts';
import { connectVfioUserPci, StrictGuest } from '../../../src/guest/index.ts';
import { defaultConfig } from '../../../src/host/config.ts';
import { type Daemon, startDaemon } from '../../../src/host/daemon.ts';

const slots = 128;
let runDir: string;
let daemon: Daemon;

before(async () => {
  runDir = mkdtempSync(join(tmpdir(), 'ptnet-strict-'));
  const vm = (port: string): { ports: string[]; trustUnsealedMemory: boolean } => ({
    ports: [port],
    trustUnsealedMemory: false,
  });
  const defaults = defaultConfig();
  daemon = await startDaemon(
    {
      ...defaults,
      runDir,
      logLevel: 'silent',
      ports: { ...defaults.ports, txSlots: slots, rxSlots: slots, txRings: 2, rxRings: 2 },
      vms: { a: vm('vale0:a'), b: vm('vale0:b') },
    },
    'test',
  );
});

after(async () => {
  await daemon.stop('test over');
  rmSync(runDir, { recursive: true, force: true });
});

interface Machine {
  readonly guest: StrictGuest;
  readonly memdev: PciDevice;
  readonly ptnet: PciDevice;
}

/** A VM starts: its devices are connected and reset. It is off when the test is over. */
async function boot(t: TestContext, vm: string, options: StrictGuestOptions): Promise<Machine> {
  const [memdevSocket, ptnetSocket] = daemon.status().vms.find(({ name }) => name === vm)!.sockets;
  const memdev = await connectVfioUserPci(memdevSocket!, 'memdev');
  const ptnet = await connectVfioUserPci(ptnetSocket!, 'ptnet');
  const machine = { guest: new StrictGuest(memdev, ptnet, options), memdev, ptnet };
  t.after(() => powerOff(machine));
  return machine;
}

async function powerOff({ guest, memdev, ptnet }: Machine): Promise<void> {
  guest.abandon();
  await ptnet.close();
  await memdev.close();
}

/** An Ethernet frame from one guest to another. */
function frameTo(to: readonly number[], from: readonly number[], n: number, bytes: number): Uint8Array {
  const payload = Array.from({ length: bytes - 14 }, (_, i) => (n + i) & 0xff);
  return Uint8Array.from([...to, ...from, 0x88, 0xb5, ...payload]);
}

/** Receives on all rings, waiting for interrupts, until that many frames came. */
async function receive(guest: StrictGuest, count: number): Promise<Uint8Array[]> {
  const frames: Uint8Array[] = [];
  for (let idle = 0; frames.length < count; ) {
    const had = frames.length;
    for (const ring of [0, 1]) frames.push(...(await guest.receive(ring)));
    if (frames.length > had) {
      idle = 0;
      continue;
    }
    assert.ok(idle++ < 50, `${frames.length} of ${count} frames came`);
    await guest.interrupted([guest.rxRing(0), guest.rxRing(1)], 100);
  }
  return frames;
}

const broadcast = [255, 255, 255, 255, 255, 255];
/** Frames of different rings come in any order. Long ones are named by their length and beginning. */
const sorted = (frames: readonly Uint8Array[]): string[] =>
  frames.map((f) => `${f.length} ${Buffer.from(f.subarray(0, 64)).toString('hex')}`).sort();

for (const driver of ['freebsd', 'linux'] as const) {
  for (const mode of ['ifnet', 'netmap'] as const) {
    test(`${driver} in ${mode} mode: two guests exchange frames through VALE, down and up again, detach`, async (t) => {
      const a = await boot(t, 'a', { driver, mode });
      const b = await boot(t, 'b', { driver, mode });
      await a.guest.attach();
      await b.guest.attach();
      for (let life = 0; life < 2; life++) {
        await a.guest.up();
        await b.guest.up();
        // Both addresses become known.
        await b.guest.transmit([frameTo(broadcast, b.guest.mac, 0, 60)]);
        await receive(a.guest, 1);
        for (let n = 0; n < 30; n++) {
          const sizes = [60, 1514, 61, 64, 9000, 200];
          const sent = sizes.map((bytes, i) => frameTo(b.guest.mac, a.guest.mac, n + i, bytes));
          assert.equal(await a.guest.transmit(sent, n % 2), sent.length);
          assert.deepEqual(sorted(await receive(b.guest, sent.length)), sorted(sent));
        }
        // In netmap mode, what was taken is given back by the next rxsync.
        for (const { guest } of [a, b]) for (const ring of [0, 1]) assert.deepEqual(await guest.receive(ring), []);
        await a.guest.down();
        await b.guest.down();
      }
      await a.guest.up();
      await a.guest.detach();
      await b.guest.detach();
    });
  }
}

test('R18, R19: a guest that dies is replaced by one that finds new rings; the other guest goes on', async (t) => {
  const b = await boot(t, 'b', { driver: 'linux' });
  await b.guest.attach();
  await b.guest.up();
  for (let n = 0; n < 3; n++) {
    const a = await boot(t, 'a', { driver: n % 2 === 0 ? 'freebsd' : 'linux' });
    await a.guest.attach();
    await a.guest.up();
    const sent = [frameTo(broadcast, a.guest.mac, n, 100)];
    await a.guest.transmit(sent);
    assert.deepEqual(sorted(await receive(b.guest, 1)), sorted(sent));
    // It leaves wreckage: slots that share a buffer, indexes that are none.
    const { m, ring } = a.guest.txRing(0).at;
    for (let i = 0; i < slots; i++) netmap_slot.set.buf_idx(m, ring + netmap_ring.size + 16 * i, 3);
    netmap_ring.set.head(m, ring, 0xffff);
    await powerOff(a);
  }
  await b.guest.detach();
});

test('the driver is unloaded and loaded again without a reset: positions go on', async (t) => {
  const a = await boot(t, 'a', { driver: 'freebsd' });
  for (let load = 0; load < 3; load++) {
    await a.guest.attach();
    await a.guest.up();
    assert.equal(a.guest.txRing(0).rhead, 5 * load);
    await a.guest.transmit(Array.from({ length: 5 }, (_, n) => frameTo(broadcast, a.guest.mac, n, 60)));
    await a.guest.detach();
  }
});

test('R18: CREATE while running answers 0 and changes nothing; DELETE when nothing runs answers 0', async (t) => {
  const a = await boot(t, 'a', { driver: 'linux' });
  await a.guest.attach();
  await a.guest.up();
  await a.guest.transmit([frameTo(broadcast, a.guest.mac, 1, 60)]);
  await a.ptnet.write32(PTNET_IO.PTCTL, 1);
  assert.equal(await a.ptnet.read32(PTNET_IO.PTCTL), 0);
  await a.guest.transmit([frameTo(broadcast, a.guest.mac, 2, 60)]);
  assert.equal(a.guest.txRing(0).rhead, 2);
  await a.guest.detach();
  await a.ptnet.write32(PTNET_IO.PTCTL, 2);
  assert.equal(await a.ptnet.read32(PTNET_IO.PTCTL), 0);
});

test('R11: a VALE rx ring soon stops asking for kicks, also if nothing ever comes', async (t) => {
  const a = await boot(t, 'a', { driver: 'freebsd', mode: 'netmap' });
  await a.guest.attach();
  await a.guest.up();
  const wants = (): boolean => [0, 1].some((ring) => a.guest.rxRing(ring).kernNeedKick);
  for (let i = 0; i < 200 && wants(); i++) await setTimeout(5);
  assert.equal(wants(), false);
  await a.guest.detach();
});

/**
 * A stock QEMU attaches the devices of a running daemon: both realize, the guest sees their ids, BARs, MSI-X and registers;
 * firmware's remaps, a reboot and kill -9 are survived (docs/abi.md 2, 4).
 */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import {
  PTNET_IO,
  PTNET_MDEV_IO,
  PTNET_PCI_CLASS,
  PTNETMAP_PCI_CLASS,
  PTNETMAP_PCI_DEVICE_ID,
  PTNETMAP_PCI_NETIF_ID,
  PTNETMAP_PCI_VENDOR_ID,
  PTNETMAP_PTCTL_CREATE,
} from '../../src/abi/index.ts';
import { defaultConfig } from '../../src/host/config.ts';
import type { Daemon } from '../../src/host/daemon.ts';
import { startDaemon } from '../../src/host/daemon.ts';
import { HUGE_PAGE, PAGE_SIZE } from '../../src/os/index.ts';
import { borrowHugePages } from '../unit/memory/huge-pages.ts';
import type { PciDevice } from './qemu.ts';
import {
  enablePciDevice,
  findQemuAndGuest,
  QemuGuest,
  readIoBar,
  readPciDevices,
  readPhysical,
  writeIoBar,
} from './qemu.ts';

const root = new URL('../../..', import.meta.url).pathname;
const errnoName = { ENXIO: 6 };

const huge = await borrowHugePages(8);
after(() => huge.giveBack());

for (const [machine, hugePages] of [
  ['pc', false],
  ['q35', false],
  ['q35', true],
] as const) {
  const name = `QEMU (${machine}) with a ptnet device${hugePages ? ', its region on huge pages' : ''}`;
  describe(name, { concurrency: false, skip: hugePages && huge.skip }, () => {
    const dir = mkdtempSync(join(tmpdir(), 'ptnet-e2e-'));
    let daemon: Daemon;
    let guest: QemuGuest;
    let image: Awaited<ReturnType<typeof findQemuAndGuest>>;

    const device = (path: string): string =>
      JSON.stringify({ driver: 'vfio-user-pci', socket: { type: 'unix', path }, 'x-msg-timeout': 60000 });

    const boot = (): Promise<QemuGuest> =>
      QemuGuest.start({
        ...image,
        machine,
        memoryMiB: 256,
        devices: daemon.status().vms[0]!.sockets.map(device),
      });

    const find = (devices: readonly PciDevice[], id: number): PciDevice => {
      const found = devices.find((d) => d.vendorId === PTNETMAP_PCI_VENDOR_ID && d.deviceId === id);
      assert.ok(found, `device ${id.toString(16)} is there`);
      return found;
    };

    const port = (): ReturnType<Daemon['status']>['domains'][number]['ports'][number] =>
      daemon.status().domains[0]!.ports[0]!;

    before(async () => {
      image = await findQemuAndGuest(root);
      daemon = await startDaemon(
        {
          ...defaultConfig(),
          runDir: join(dir, 'run'),
          logLevel: 'warn',
          vms: { vm1: { ports: ['vale0:vm1'], trustUnsealedMemory: false, hugePages } },
        },
        'test',
      );
      guest = await boot();
    });

    after(async () => {
      await guest?.close();
      await daemon?.stop('test over');
      rmSync(dir, { recursive: true, force: true });
    });

    const checkDevices = async (): Promise<void> => {
      await guest.waitReady();
      const devices = await readPciDevices(guest);
      const memdev = find(devices, PTNETMAP_PCI_DEVICE_ID);
      const ptnet = find(devices, PTNETMAP_PCI_NETIF_ID);
      assert.equal(memdev.classCode, PTNETMAP_PCI_CLASS);
      assert.equal(ptnet.classCode, PTNET_PCI_CLASS);
      assert.equal(ptnet.interruptPin, 0);
      assert.equal(ptnet.msix?.vectors, 2);
      assert.equal(memdev.msix, null);
      await enablePciDevice(guest, memdev.bdf);
      await enablePciDevice(guest, ptnet.bdf);
      const { region, mac } = port();
      const info = daemon.status().regions.find((r) => r.name === region)!;
      assert.equal(await readIoBar(guest, memdev.bdf, 0, PTNET_MDEV_IO.MEMSIZE_LO), info.bytes);
      assert.equal(await readIoBar(guest, memdev.bdf, 0, PTNET_MDEV_IO.MEMID), info.memId);
      assert.equal(await readIoBar(guest, memdev.bdf, 0, PTNET_MDEV_IO.BUF_POOL_OBJNUM), info.buffers);
      assert.equal(await readIoBar(guest, ptnet.bdf, 0, PTNET_IO.HOSTMEMID), info.memId);
      assert.equal(await readIoBar(guest, ptnet.bdf, 0, PTNET_IO.NUM_TX_RINGS), 1);
      assert.equal(await readIoBar(guest, ptnet.bdf, 0, PTNET_IO.NUM_RX_SLOTS), 1024);
      const lo = await readIoBar(guest, ptnet.bdf, 0, PTNET_IO.MAC_LO);
      const hi = await readIoBar(guest, ptnet.bdf, 0, PTNET_IO.MAC_HI);
      assert.equal(hi.toString(16).padStart(4, '0') + lo.toString(16).padStart(8, '0'), mac.replaceAll(':', ''));
      // The region is mapped into the guest: the netmap_if of the port lies at NIFP_OFS, with its name and version.
      const bar1 = memdev.bars.find((b) => b.bar === 1)!;
      const nifp = bar1.start + BigInt(await readIoBar(guest, ptnet.bdf, 0, PTNET_IO.NIFP_OFS));
      assert.equal(await readPhysical(guest, nifp), Buffer.from('vale').readUInt32LE());
      assert.equal(await readPhysical(guest, nifp + 16n), 14);
      assert.equal(info.pageBytes, hugePages ? HUGE_PAGE : PAGE_SIZE);
      // Behind the region BAR1 goes on: there is nothing, and nobody is hurt.
      assert.equal(await readPhysical(guest, bar1.start + BigInt(2 ** Math.ceil(Math.log2(info.bytes)) - 4)), 0);
      // CREATE without CSB: a positive errno, read back.
      await writeIoBar(guest, ptnet.bdf, 0, PTNET_IO.PTCTL, PTNETMAP_PTCTL_CREATE);
      assert.equal(await readIoBar(guest, ptnet.bdf, 0, PTNET_IO.PTCTL), errnoName.ENXIO);
      assert.equal(port().attached, true);
    };

    test('both devices realize; ids, BARs, MSI-X, registers and the region are as the drivers need them', checkDevices);

    test('R18: a reboot inside resets the devices; everything is there again', async () => {
      guest.send('reboot -f');
      await checkDevices();
    });

    test('a system reset resets the devices', async () => {
      await guest.reset();
      await checkDevices();
    });

    test('R19: kill -9 of QEMU; the daemon goes on and a new QEMU connects to the same sockets', async () => {
      guest.kill('SIGKILL');
      await guest.exited;
      guest = await boot();
      await checkDevices();
    });
  });
}

/** A PCI device behind a vfio-user socket as the driver sees it: registers, kicks, memory, vectors, descriptors. */
import assert from 'node:assert/strict';
import { setImmediate } from 'node:timers/promises';
import { test } from 'node:test';
import { PTNET_IO } from '../../../src/abi/index.ts';
import { openVfioUserPci } from '../../../src/guest/vfio-user-pci.ts';
import { closeFd, dup, eventfd, eventfdRead, eventfdSignal, fileSize, memfd } from '../../../src/os/index.ts';
import type { RegionIoFd, SetIrqs, VfioUserDevice } from '../../../src/vfio-user/index.ts';
import { memoryTransportPair, ServerConnection, VfioUserClient, VfioUserError } from '../../../src/vfio-user/index.ts';

/** A device that remembers what was done to it. */
class Recorder implements VfioUserDevice {
  readonly numRegions = 9;
  readonly numIrqs = 5;
  readonly deviceFlags = 3;
  readonly log: string[] = [];
  /** BAR0 and configuration space. */
  readonly bytes = [0, 7].map(() => new Uint8Array(256));
  bar1 = -1;
  ioFds: RegionIoFd[] | undefined;
  dma: { fd: number; iova: bigint; size: bigint } | undefined;
  irqs: number[] = [];

  regionInfo(index: number): { size: number; flags: number; fd?: number } {
    if (index === 1 && this.bar1 >= 0) return { size: fileSize(this.bar1), flags: 7, fd: this.bar1 };
    return index === 0 || index === 7 ? { size: 256, flags: 3 } : { size: 0, flags: 0 };
  }
  irqInfo(): { flags: number; count: number } {
    return { flags: 9, count: 3 };
  }
  regionIoFds(): readonly RegionIoFd[] {
    if (this.ioFds === undefined) throw new VfioUserError(95, 'not known here');
    return this.ioFds;
  }
  dmaMap(m: { fd: number | undefined; iova: bigint; size: bigint }): void {
    this.dma = { fd: m.fd!, iova: m.iova, size: m.size };
  }
  dmaUnmap(m: { iova: bigint; size: bigint }): void {
    this.log.push(`unmap ${m.iova} ${m.size}`);
    closeFd(this.dma!.fd);
    this.dma = undefined;
  }
  regionRead(index: number, offset: number, count: number): Uint8Array {
    return this.bytes[index === 0 ? 0 : 1]!.slice(offset, offset + count);
  }
  regionWrite(index: number, offset: number, data: Uint8Array): void {
    this.log.push(`write ${index} ${offset} ${data.length}`);
    this.bytes[index === 0 ? 0 : 1]!.set(data, offset);
  }
  setIrqs(r: SetIrqs): void {
    for (const fd of this.irqs) closeFd(fd);
    this.irqs = r.fds;
    this.log.push(`irqs ${r.index} ${r.start} ${r.count} ${r.fds.length}`);
  }
  reset(): void {
    this.log.push('reset');
  }
  disconnected(): void {
    for (const fd of this.irqs) closeFd(fd);
    if (this.dma !== undefined) closeFd(this.dma.fd);
  }
}

async function connected(device: Recorder) {
  const [a, b] = memoryTransportPair();
  const server = new ServerConnection(b, device);
  return { server, pci: await openVfioUserPci(new VfioUserClient(a), 'recorder') };
}

test('registers and configuration space are little endian, of the width asked for', async () => {
  const device = new Recorder();
  const { pci } = await connected(device);
  assert.deepEqual(device.log, ['reset']);
  device.bytes[1]!.set([0x36, 0x1b, 0x0d, 0x00]);
  assert.equal(await pci.configRead(0, 2), 0x1b36);
  assert.equal(await pci.configRead(0, 4), 0x000d_1b36);
  await pci.configWrite(4, 2, 0x0507);
  assert.deepEqual([...device.bytes[1]!.subarray(4, 8)], [7, 5, 0, 0]);
  await pci.write32(8, 0xfedc_ba98);
  assert.deepEqual([...device.bytes[0]!.subarray(8, 12)], [0x98, 0xba, 0xdc, 0xfe]);
  assert.equal(await pci.read32(8), 0xfedc_ba98);
  await pci.close();
  assert.equal(await pci.gone, 'closed by this client');
});

test('a kick is a write to the eventfd that the server gave, else to the register', async () => {
  const device = new Recorder();
  const kick = eventfd();
  device.ioFds = [{ offset: PTNET_IO.KICK_BASE, size: 4, fd: kick }];
  const { pci } = await connected(device);
  pci.kick(0);
  assert.equal(eventfdRead(kick), 1n);
  pci.kick(2);
  while (device.log.length < 2) await setImmediate();
  assert.deepEqual(device.log, ['reset', `write 0 ${PTNET_IO.KICK_BASE + 8} 4`]);
  await pci.close();
  closeFd(kick);
});

test('R1: memory is given to the device sealed against shrinking, and taken from it only so', async () => {
  const device = new Recorder();
  const { pci } = await connected(device);
  await assert.rejects(pci.memoryBar(), /recorder has no memory to map/);
  const sealed = memfd('bar', 65536);
  device.bar1 = sealed;
  const bar = await pci.memoryBar();
  assert.deepEqual([bar.ofs, bar.bytes], [0, 65536]);
  device.bar1 = memfd('unsealed', 65536, 0);
  await assert.rejects(pci.memoryBar(), /not sealed against shrinking/);
  const dma = await pci.dmaAlloc(8192);
  assert.deepEqual([device.dma!.iova, device.dma!.size], [BigInt(dma.iova), 8192n]);
  assert.equal(fileSize(device.dma!.fd), 8192);
  await pci.dmaFree(dma);
  assert.ok(device.log.includes(`unmap ${dma.iova} 8192`));
  await pci.close();
  closeFd(sealed);
  closeFd(device.bar1);
});

test('vectors: counted, enabled in one request, disabled', async () => {
  const device = new Recorder();
  const { pci } = await connected(device);
  assert.equal(await pci.msixCount(), 3);
  const irq = eventfd();
  await pci.msixEnable([irq, irq, irq]);
  eventfdSignal(device.irqs[1]!);
  assert.equal(eventfdRead(irq), 1n);
  await pci.msixDisable();
  assert.deepEqual(device.log, ['reset', 'irqs 2 0 3 3', 'irqs 2 0 0 0']);
  await pci.close();
  closeFd(irq);
});

test('the end of the server is known', async () => {
  const device = new Recorder();
  const { server, pci } = await connected(device);
  server.close('it was enough');
  assert.match(await pci.gone, /./);
  await assert.rejects(pci.read32(0));
  pci.kick(0);
  await pci.close();
});

test('close gives back every descriptor', async () => {
  const open = async (): Promise<void> => {
    const device = new Recorder();
    device.bar1 = memfd('bar', 4096);
    const kick = eventfd();
    device.ioFds = [0, 1, 2].map((i) => ({ offset: PTNET_IO.KICK_BASE + 4 * i, size: 4, fd: kick }));
    const { server, pci } = await connected(device);
    await pci.memoryBar();
    await pci.memoryBar();
    await pci.dmaAlloc(8192);
    await pci.close();
    await server.closed;
    closeFd(device.bar1);
    closeFd(kick);
  };
  await open();
  const probe = dup(0);
  closeFd(probe);
  await open();
  const again = dup(0);
  closeFd(again);
  assert.equal(again, probe, 'the lowest free descriptor is the same');
});

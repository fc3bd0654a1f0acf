/**
 * Bytes of every message, written down by hand from the structs of the specification (QEMU docs/interop/vfio-user.rst):
 * what the client puts on the wire, and what the server answers to it. Header: id, command, size, flags, error.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { memoryTransportPair, ServerConnection, VfioUserClient } from '../../src/vfio-user/index.ts';
import { closeFd, memfd, RecordingDevice, turn, Wire } from '../unit/vfio-user/support.ts';

interface Exchange {
  readonly name: string;
  readonly call: (client: VfioUserClient) => Promise<unknown>;
  readonly request: string;
  readonly requestFds?: number;
  readonly reply: string;
  readonly replyFds?: number;
}

const JSON_BYTES = Buffer.from('{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576}}\0').toString('hex');
const fd = memfd('golden', 4096);

const exchanges: readonly Exchange[] = [
  {
    name: 'VERSION',
    call: (c) => c.negotiate(),
    request: `0100 0100 55000000 00000000 00000000  0000 0000 ${JSON_BYTES}`,
    reply: `0100 0100 55000000 01000000 00000000  0000 0000 ${JSON_BYTES}`,
  },
  {
    name: 'DMA_MAP (no MMAP flag; the reply is a header)',
    call: (c) => c.dmaMap({ iova: 0xc0000n, size: 0x180000000n, fd, offset: 0x2000n, flags: 3 }),
    request: `0200 0200 30000000 00000000 00000000
      20000000 03000000 0020000000000000 00000c0000000000 0000008001000000`,
    requestFds: 1,
    reply: '0200 0200 10000000 01000000 00000000',
  },
  {
    name: 'DMA_UNMAP (24 bytes, echoed)',
    call: (c) => c.dmaUnmap({ iova: 0xfef00000n, size: 0xffffffff01100000n }),
    request: '0300 0300 28000000 00000000 00000000  18000000 00000000 0000f0fe00000000 00001001ffffffff',
    reply: '0300 0300 28000000 01000000 00000000  18000000 00000000 0000f0fe00000000 00001001ffffffff',
  },
  {
    name: 'DEVICE_GET_INFO',
    call: (c) => c.deviceInfo(),
    request: '0400 0400 20000000 00000000 00000000  10000000 00000000 00000000 00000000',
    reply: '0400 0400 20000000 01000000 00000000  10000000 03000000 04000000 05000000',
  },
  {
    name: 'DEVICE_GET_REGION_INFO with a descriptor',
    call: async (c) => (await c.regionInfo(1)).fds.forEach(closeFd),
    request: `0500 0500 30000000 00000000 00000000
      20000000 00000000 01000000 00000000 0000000000000000 0000000000000000`,
    reply: `0500 0500 30000000 01000000 00000000
      20000000 07000000 01000000 00000000 0020000000000000 0010000000000000`,
    replyFds: 1,
  },
  {
    name: 'DEVICE_GET_REGION_IO_FDS: two sub-regions, one descriptor',
    call: async (c) => closeFd((await c.regionIoFds(0))[0]!.fd),
    request: '0600 0600 20000000 00000000 00000000  100a0000 00000000 00000000 00000000',
    reply: `0600 0600 70000000 01000000 00000000  60000000 00000000 00000000 02000000
      8000000000000000 0400000000000000 00000000 00000000 00000000 00000000 0000000000000000
      8400000000000000 0400000000000000 00000000 00000000 01000000 00000000 0700000000000000`,
    replyFds: 1,
  },
  {
    name: 'DEVICE_GET_IRQ_INFO',
    call: (c) => c.irqInfo(2),
    request: '0700 0700 20000000 00000000 00000000  10000000 00000000 02000000 00000000',
    reply: '0700 0700 20000000 01000000 00000000  10000000 09000000 02000000 28000000',
  },
  {
    name: 'DEVICE_SET_IRQS with descriptors, none of them inline',
    call: (c) => c.setIrqs({ index: 2, start: 1, fds: [fd, fd, fd] }),
    request: '0800 0800 24000000 00000000 00000000  14000000 24000000 02000000 01000000 03000000',
    requestFds: 3,
    reply: '0800 0800 10000000 01000000 00000000',
  },
  {
    name: 'DEVICE_SET_IRQS, all off',
    call: (c) => c.disableIrqs(2),
    request: '0900 0800 24000000 00000000 00000000  14000000 21000000 02000000 00000000 00000000',
    reply: '0900 0800 10000000 01000000 00000000',
  },
  {
    name: 'REGION_READ',
    call: (c) => c.regionRead(0, 4, 3),
    request: '0a00 0900 20000000 00000000 00000000  0400000000000000 00000000 03000000',
    reply: '0a00 0900 23000000 01000000 00000000  0400000000000000 00000000 03000000 000000',
  },
  {
    name: 'REGION_WRITE (the reply leaves the data out)',
    call: (c) => c.regionWrite(0, 128, Uint8Array.of(1, 2, 3, 4)),
    request: '0b00 0a00 24000000 00000000 00000000  8000000000000000 00000000 04000000 01020304',
    reply: '0b00 0a00 20000000 01000000 00000000  8000000000000000 00000000 04000000',
  },
  {
    name: 'DEVICE_RESET (headers only)',
    call: (c) => c.reset(),
    request: '0c00 0d00 10000000 00000000 00000000',
    reply: '0c00 0d00 10000000 01000000 00000000',
  },
  {
    name: 'an error reply (header only, ERROR flag, errno)',
    call: (c) => c.irqInfo(3).catch(() => {}),
    request: '0d00 0700 20000000 00000000 00000000  10000000 00000000 03000000 00000000',
    reply: '0d00 0700 10000000 21000000 16000000',
  },
];

const hex = (text: string): string => text.replaceAll(/\s/g, '');

/** Everything that is there to read now. */
async function drain(wire: Wire): Promise<{ bytes: Uint8Array; hex: string; fds: number[] }> {
  const into = Buffer.alloc(65536);
  for (;;) {
    await turn();
    const got = wire.transport.receive(into);
    if (got.again) continue;
    const bytes = new Uint8Array(into.subarray(0, got.bytes));
    return { bytes, hex: Buffer.from(bytes).toString('hex'), fds: got.fds };
  }
}

test('the wire has exactly the bytes of the specification, in both directions', async (t) => {
  const [clientEnd, fromClient] = memoryTransportPair();
  const [serverEnd, toServer] = memoryTransportPair();
  const client = new VfioUserClient(clientEnd);
  const device = new RecordingDevice();
  const server = new ServerConnection(serverEnd, device);
  const front = new Wire(fromClient);
  const back = new Wire(toServer);
  for (const x of exchanges) {
    await t.test(x.name, async () => {
      const done = x.call(client);
      const request = await drain(front);
      assert.equal(request.hex, hex(x.request), 'request');
      assert.equal(request.fds.length, x.requestFds ?? 0, 'descriptors of the request');
      await back.send(request.bytes, request.fds);
      request.fds.forEach(closeFd);
      const reply = await drain(back);
      assert.equal(reply.hex, hex(x.reply), 'reply');
      assert.equal(reply.fds.length, x.replyFds ?? 0, 'descriptors of the reply');
      await front.send(reply.bytes, reply.fds);
      reply.fds.forEach(closeFd);
      await done;
    });
  }
  client.close();
  back.close();
  await server.closed;
  device.destroy();
  closeFd(fd);
});

test('QEMU 11.1 negotiates: 198 bytes of payload, a reply with less', async () => {
  const [serverEnd, rest] = memoryTransportPair();
  const device = new RecordingDevice();
  const server = new ServerConnection(serverEnd, device);
  const wire = new Wire(rest);
  const caps =
    '{"capabilities":{"pgsizes":4096,"max_msg_fds":16,"max_dma_maps":65535,"max_data_xfer_size":1048576,' +
    '"migration":{"pgsize":4096,"max_bitmap_size":268435456},"write_multiple":true}}';
  const json = caps.padEnd(193, ' ');
  const body = Buffer.from(`\0\0\0\0${json}\0`).toString('hex');
  assert.equal(body.length / 2, 198);
  await wire.send(Buffer.from(hex(`0000 0100 d6000000 00000000 00000000 ${body}`), 'hex'));
  assert.equal((await drain(wire)).hex, hex(`0000 0100 55000000 01000000 00000000 0000 0000 ${JSON_BYTES}`));
  wire.close();
  await server.closed;
  device.destroy();
});

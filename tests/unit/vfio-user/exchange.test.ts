/** Client and server together, over each kind of transport. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { VfioUserError } from '../../../src/vfio-user/index.ts';
import { closeFd, eventfd, frame, kinds, memfd, openFds, serveClient, serveRaw, versionFrame } from './support.ts';

const refusal = (code: number) => (e: unknown) => e instanceof VfioUserError && e.errno === code;

test('a region that can be mapped in part says which, to a client that has room for it', async () => {
  await using r = serveRaw();
  const { device, wire } = r;
  device.regionInfo = () => ({ size: 2 ** 22, flags: 7, fd: device.barFd, mmapBytes: 3 * 2 ** 20 });
  await wire.call(versionFrame('{}'));
  const words = async (argsz: number): Promise<number[]> => {
    const body = new Uint8Array(Uint32Array.of(argsz, 0, 1, 0, 0, 0, 0, 0).buffer);
    const reply = (await wire.call(frame(9, 5, body)))!;
    assert.equal(reply.fds.length, 1);
    reply.fds.forEach(closeFd);
    const bytes = Uint8Array.from(Buffer.from(reply.body, 'hex'));
    return [...new Uint32Array(bytes.buffer)];
  };
  // argsz, flags, index, cap_offset, size, offset; id and version, next, nr_areas, reserved, offset, size
  assert.deepEqual(await words(32), [64, 7, 1, 0, 2 ** 22, 0, 0, 0]);
  assert.deepEqual(await words(64), [64, 15, 1, 32, 2 ** 22, 0, 0, 0, 0x10001, 0, 1, 0, 0, 0, 3 * 2 ** 20, 0]);
});

for (const kind of kinds) {
  test(`${kind}: every request of a session goes through and leaves no descriptor behind`, async () => {
    const before = openFds();
    await using served = await serveClient(kind);
    const { device, client } = served;
    assert.deepEqual(await client.deviceInfo(), { flags: 3, numRegions: 4, numIrqs: 5 });
    assert.deepEqual(await client.regionInfo(0), { size: 256n, flags: 3, offset: 0n, fds: [] });
    const bar = await client.regionInfo(1);
    assert.deepEqual({ ...bar, fds: bar.fds.length }, { size: 8192n, flags: 7, offset: 4096n, fds: 1 });
    bar.fds.forEach(closeFd);
    assert.deepEqual(await client.irqInfo(2), { flags: 9, count: 40 });
    await client.regionWrite(0, 16, Uint8Array.of(1, 2, 3, 4));
    assert.deepEqual([...(await client.regionRead(0, 14, 8))], [0, 0, 1, 2, 3, 4, 0, 0]);
    const large = kind === 'bytewise memory' ? 5000 : 1 << 20;
    assert.equal((await client.regionRead(3, 0, large)).length, large);
    const io = await client.regionIoFds(0);
    assert.deepEqual(
      io.map((part) => ({ ...part, fd: 0 })),
      [
        { fd: 0, offset: 128, size: 4, flags: 0, datamatch: 0n },
        { fd: 0, offset: 132, size: 4, flags: 1, datamatch: 7n },
      ],
    );
    assert.equal(io[0]?.fd, io[1]?.fd);
    closeFd(io[0]!.fd);
    assert.deepEqual(await client.regionIoFds(3), []);
    const fd = memfd('ram', 1 << 20);
    await client.dmaMap({ iova: 1n << 40n, size: 1n << 20n, fd, offset: 4096n, flags: 3 });
    closeFd(fd);
    await client.dmaMap({ iova: 0n, size: 4096n, flags: 1 });
    await client.dmaUnmap({ iova: 0xfef00000n, size: 0xffffffff01100000n });
    await client.dmaUnmap({ iova: 0n, size: 0n, all: true });
    const vectors = Array.from({ length: 20 }, () => eventfd());
    await client.setIrqs({ index: 2, start: 3, fds: vectors });
    vectors.forEach(closeFd);
    await client.setIrqs({ index: 2, start: 0, fds: [], count: 2 });
    await client.disableIrqs(2);
    await client.reset();
    client.close();
    assert.equal(await client.closed, 'closed by this client');
    assert.equal(await served.server.closed, 'the peer closed the connection');
    assert.deepEqual(device.calls, [
      'regionWrite 0 16 01020304',
      'regionRead 0 14 8',
      `regionRead 3 0 ${large}`,
      'dmaMap 1099511627776 1048576 3 4096 fd',
      'dmaMap 0 4096 1 0 no fd',
      `dmaUnmap ${0xfef00000} ${0xffffffff01100000n} 0`,
      `dmaUnmap 0 ${1n << 64n} 2`,
      'setIrqs 2 0x24 3 16 16',
      'setIrqs 2 0x24 19 4 4',
      'setIrqs 2 0x24 0 2 0',
      'setIrqs 2 0x21 0 0 0',
      'reset',
      'disconnected',
    ]);
    await served[Symbol.asyncDispose]();
    assert.equal(openFds(), before);
  });

  test(`${kind}: a refusal comes back with its errno, and the connection goes on`, async () => {
    await using served = await serveClient(kind);
    const { device, client } = served;
    await assert.rejects(client.irqInfo(3), refusal(22));
    await assert.rejects(client.regionRead(0, 250, 7), refusal(22));
    await assert.rejects(client.regionWrite(3, 0, new Uint8Array(4)), refusal(1));
    device.hook = () => {
      throw new VfioUserError(17, 'there already');
    };
    await assert.rejects(client.dmaMap({ iova: 0n, size: 4096n, flags: 3 }), refusal(17));
    device.hook = () => Promise.reject(new TypeError('a bug'));
    await assert.rejects(client.reset(), refusal(5));
    device.hook = () => {};
    await client.reset();
  });

  test(`${kind}: requests made together are served one after the other, in order`, async () => {
    await using served = await serveClient(kind);
    const { device, client } = served;
    let running = 0;
    device.hook = async () => {
      assert.equal(running++, 0);
      await new Promise((resolve) => setImmediate(resolve));
      running--;
    };
    const writes = Array.from({ length: 50 }, (_, i) => client.regionWrite(0, i, Uint8Array.of(i)));
    await Promise.all(writes);
    assert.deepEqual(
      device.calls,
      Array.from({ length: 50 }, (_, i) => `regionWrite 0 ${i} ${i.toString(16).padStart(2, '0')}`),
    );
  });
}

/** The client against servers that misbehave: requests are rejected with a clear error, nothing hangs or leaks. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { acceptUnix, listenUnix, SysError } from '../../../src/os/index.ts';
import { memoryTransportPair, VfioUserClient, VfioUserError } from '../../../src/vfio-user/index.ts';
import { closeFd, eventfd, frame, openFds, turn, versionFrame, Wire } from './support.ts';

const ECONNRESET = 104;
const ETIMEDOUT = 110;

const failsWith = (errno: number, says: RegExp) => (e: unknown) => {
  assert.ok(e instanceof VfioUserError, String(e));
  assert.equal(e.errno, errno);
  assert.match(e.message, says);
  return true;
};

function pair(timeoutMs = 5000): { client: VfioUserClient; wire: Wire } {
  const [a, b] = memoryTransportPair();
  return { client: new VfioUserClient(a, { timeoutMs }), wire: new Wire(b) };
}

/** What a server might answer to the client's first request, and what the client makes of it. */
const replies: readonly {
  readonly name: string;
  readonly call: (c: VfioUserClient) => Promise<unknown>;
  readonly reply: Uint8Array;
  readonly fds?: number;
  readonly says: RegExp;
}[] = [
  { name: 'a request', call: (c) => c.reset(), reply: frame(1, 12), says: /DMA_WRITE, which is no reply/ },
  { name: 'another id', call: (c) => c.reset(), reply: frame(2, 13, '', { flags: 1 }), says: /nobody waits for/ },
  { name: 'another command', call: (c) => c.reset(), reply: frame(1, 4, '', { flags: 1 }), says: /nobody waits for/ },
  { name: 'size 3', call: (c) => c.reset(), reply: frame(1, 13, '', { flags: 1, size: 3 }), says: /size 3/ },
  {
    name: 'a huge size',
    call: (c) => c.reset(),
    reply: frame(1, 13, '', { flags: 1, size: 0xffffffff }),
    says: /size 4294967295/,
  },
  { name: 'too large', call: (c) => c.reset(), reply: frame(1, 13, '00', { flags: 1 }), says: /too many/ },
  { name: 'too short', call: (c) => c.deviceInfo(), reply: frame(1, 4, '00', { flags: 1 }), says: /too short/ },
  {
    name: 'an error with a body',
    call: (c) => c.deviceInfo(),
    reply: frame(1, 4, '00', { flags: 0x21, error: 5 }),
    says: /too many/,
  },
  {
    name: 'descriptors nobody asked for',
    call: (c) => c.reset(),
    reply: frame(1, 13, '', { flags: 1 }),
    fds: 1,
    says: /not asked for/,
  },
  {
    name: 'more descriptors than a region has',
    call: (c) => c.regionInfo(0),
    reply: frame(1, 5, '00'.repeat(32), { flags: 1 }),
    fds: 2,
    says: /not asked for/,
  },
  {
    name: 'about another region',
    call: (c) => c.regionInfo(0),
    reply: frame(1, 5, '20000000 07000000 01000000 00000000 0000000000000000 0000000000000000', { flags: 1 }),
    fds: 1,
    says: /another region: 1, not 0/,
  },
  {
    name: 'fewer bytes read',
    call: (c) => c.regionRead(0, 0, 4),
    reply: frame(1, 9, '0000000000000000 00000000 02000000 0000', { flags: 1 }),
    says: /bytes read: 2, not 4/,
  },
  {
    name: 'a count without the bytes',
    call: (c) => c.regionRead(0, 0, 4),
    reply: frame(1, 9, '0000000000000000 00000000 04000000', { flags: 1 }),
    says: /too short/,
  },
  {
    name: 'a sub-region whose descriptor is missing',
    call: (c) => c.regionIoFds(0),
    reply: frame(1, 6, `38000000 00000000 00000000 01000000 ${'00'.repeat(16)} 01000000 ${'00'.repeat(20)}`, {
      flags: 1,
    }),
    fds: 1,
    says: /descriptor that did not come/,
  },
  {
    name: 'a sub-region of another type',
    call: (c) => c.regionIoFds(0),
    reply: frame(1, 6, `38000000 00000000 00000000 01000000 ${'00'.repeat(20)} 01000000 ${'00'.repeat(16)}`, {
      flags: 1,
    }),
    fds: 1,
    says: /type 1/,
  },
  {
    name: 'more sub-regions than bytes',
    call: (c) => c.regionIoFds(0),
    reply: frame(1, 6, '10000000 00000000 00000000 ffffffff', { flags: 1 }),
    fds: 3,
    says: /4294967295 sub-regions in 0 bytes/,
  },
  {
    name: 'another major version',
    call: (c) => c.negotiate(),
    reply: (() => {
      const m = versionFrame('{}', 2);
      m[8] = 1;
      return m;
    })(),
    says: /speaks version 2/,
  },
];

test('a reply that breaks the protocol ends the connection and closes its descriptors', async (t) => {
  for (const r of replies) {
    await t.test(r.name, async () => {
      const before = openFds();
      const { client, wire } = pair();
      const done = r.call(client);
      const refused = assert.rejects(done, r.says);
      await wire.receive();
      const fds = Array.from({ length: r.fds ?? 0 }, () => eventfd());
      await wire.send(r.reply, fds);
      fds.forEach(closeFd);
      await refused;
      assert.match(await client.closed, r.says);
      wire.close();
      assert.equal(openFds(), before);
    });
  }
});

test('regionIoFds: closes what no entry names, accepts longer entries, and asks again with the room needed', async () => {
  const before = openFds();
  const { client, wire } = pair();
  const done = client.regionIoFds(0);
  assert.match((await wire.receive())!.body, /^100a0000/);
  await wire.send(frame(1, 6, '10100000 00000000 00000000 01000000', { flags: 1 }));
  assert.match((await wire.receive())!.body, /^10100000/);
  const fds = [eventfd(), eventfd(), eventfd()];
  const entry = `8000000000000000 0400000000000000 01000000 ${'00'.repeat(28)}`; // 48 bytes, as libvfio-user's
  await wire.send(frame(2, 6, `40000000 00000000 00000000 01000000 ${entry}`, { flags: 1 }), fds);
  fds.forEach(closeFd);
  const [part, ...others] = await done;
  assert.equal(others.length, 0);
  assert.equal(part?.offset, 128);
  closeFd(part!.fd);
  client.close();
  wire.close();
  assert.equal(openFds(), before);
});

test('the end of the server rejects everything that waits, and everything after', async () => {
  const { client, wire } = pair();
  const waiting = [client.reset(), client.deviceInfo(), client.regionRead(0, 0, 4)];
  const rejected = waiting.map((p) => assert.rejects(p, failsWith(ECONNRESET, /the peer closed the connection/)));
  await turn();
  wire.close();
  await Promise.all(rejected);
  await assert.rejects(client.reset(), failsWith(ECONNRESET, /DEVICE_RESET: the connection is over/));
  assert.equal(await client.closed, 'the peer closed the connection');
});

test('close rejects what waits', async () => {
  const { client, wire } = pair();
  const rejected = assert.rejects(client.reset(), failsWith(ECONNRESET, /closed by this client/));
  client.close();
  client.close();
  await rejected;
  wire.close();
});

test('a reply that does not come in time ends the connection', async () => {
  const { client, wire } = pair(30);
  const rejected = [
    assert.rejects(client.reset(), failsWith(ETIMEDOUT, /no reply to DEVICE_RESET within 30 ms/)),
    assert.rejects(client.deviceInfo(), VfioUserError),
  ];
  await Promise.all(rejected);
  assert.match(await client.closed, /within 30 ms/);
  wire.close();
});

test('replies may come in any order; errno 0 with the error flag is EIO', async () => {
  const { client, wire } = pair();
  const reset = client.reset();
  const info = assert.rejects(client.deviceInfo(), failsWith(5, /refused DEVICE_GET_INFO/));
  await wire.send(frame(2, 4, '', { flags: 0x21 }));
  await wire.send(frame(1, 13, '', { flags: 1 }));
  await Promise.all([reset, info]);
  client.close();
  wire.close();
});

test('accesses larger than the server takes are refused before they are sent', async () => {
  const { client, wire } = pair();
  const done = client.negotiate();
  await wire.receive();
  const reply = versionFrame('{"capabilities":{"max_data_xfer_size":16}}');
  reply[8] = 1;
  await wire.send(reply);
  assert.deepEqual(await done, { maxMsgFds: 1, maxDataXferSize: 16 });
  await assert.rejects(client.regionRead(0, 0, 17), RangeError);
  await assert.rejects(client.regionWrite(0, 0, new Uint8Array(0)), RangeError);
  client.close();
  wire.close();
});

test('connect: no socket is an error with its errno; a full queue is waited for', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'vfio-user-'));
  const path = join(dir, 's');
  await assert.rejects(VfioUserClient.connect(path), (e) => e instanceof SysError && e.code === 'ENOENT');
  const listening = listenUnix(path, 0o600, 0);
  const clients = Promise.all([1, 2, 3, 4].map(() => VfioUserClient.connect(path)));
  const accepted: number[] = [];
  while (accepted.length < 4) {
    const fd = acceptUnix(listening);
    if (fd >= 0) accepted.push(fd);
    else await turn();
  }
  for (const client of await clients) client.close();
  [listening, ...accepted].forEach(closeFd);
  rmSync(dir, { recursive: true });
});

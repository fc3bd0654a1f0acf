/** The control socket: what it refuses and with what words, users and quotas (R21), and opens that end in odd ways. */
import assert from 'node:assert/strict';
import { chmodSync, statSync } from 'node:fs';
import { createConnection, type Socket } from 'node:net';
import { once } from 'node:events';
import { test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import type { ControlReply } from '../../../src/abi/index.ts';
import { controlRequest, openPort, type NetmapPort } from '../../../src/api/index.ts';
import { closeFd } from '../../../src/os/index.ts';
import { asUser } from './as-user.ts';
import { type DaemonLab, eventually, openFds, withDaemon } from './lab.ts';

async function connect(lab: DaemonLab): Promise<Socket> {
  const socket = createConnection(lab.controlSocket);
  await once(socket, 'connect');
  return socket;
}

/** Sends bytes, returns what comes back until the end. */
async function ask(lab: DaemonLab, bytes: string | Buffer): Promise<string> {
  const socket = await connect(lab);
  socket.write(bytes);
  let text = '';
  for await (const chunk of socket) text += String(chunk);
  return text;
}

const MALFORMED: readonly (readonly [string, string | Buffer, string, RegExp])[] = [
  ['no JSON', 'hello\n', 'EINVAL', /the request is no JSON: "hello"/],
  ['nothing', '\n', 'EINVAL', /the request is no JSON: ""/],
  ['binary', Buffer.from([0xff, 0xfe, 0, 10]), 'EINVAL', /is no JSON/],
  ['null', 'null\n', 'EINVAL', /the request is no JSON object: null/],
  ['a number', '7\n', 'EINVAL', /no JSON object: 7/],
  ['an array', '[{"op":"list"}]\n', 'EINVAL', /no JSON object/],
  ['no operation', '{}\n', 'EINVAL', /unknown request "undefined"/],
  ['an unknown operation', '{"op":"format"}\n', 'EINVAL', /unknown request "format"/],
  ['an object as operation', '{"op":{}}\n', 'EINVAL', /unknown request "\[object Object\]"/],
  ['too long', `{"op":"list","x":"${'x'.repeat(20_000)}"}\n`, 'EMSGSIZE', /the request is longer than 16384 bytes/],
  ['too long, without an end', 'x'.repeat(30_000), 'EMSGSIZE', /longer than 16384 bytes/],
  ['open without a name', '{"op":"open"}\n', 'EINVAL', /"port" has to be a name/],
  ['a number as name', '{"op":"open","port":7}\n', 'EINVAL', /"port" has to be a name/],
  ['a name that is none', '{"op":"open","port":"eth0"}\n', 'EINVAL', /eth0/],
  ['a name with a slash', '{"op":"open","port":"vale0:../../x"}\n', 'EINVAL', /vale0:\.\.\/\.\.\/x/],
  ['a name with a NUL', '{"op":"open","port":"vale0:a\\u0000b"}\n', 'EINVAL', /port name/],
  ['an endless name', `{"op":"open","port":"vale0:${'a'.repeat(100)}"}\n`, 'EINVAL', /longer than 63/],
  [
    'slots as text',
    '{"op":"open","port":"vale0:x","options":{"txSlots":"64"}}\n',
    'EINVAL',
    /txSlots 64: a whole number from 2 to 4096/,
  ],
  ['no slots', '{"op":"open","port":"vale0:x","options":{"rxSlots":0}}\n', 'EINVAL', /rxSlots 0: a whole number/],
  [
    'too many rings',
    '{"op":"open","port":"vale0:x","options":{"txRings":16,"rxRings":16}}\n',
    'EINVAL',
    /16 \+ 16 rings; at most \d+ in all/,
  ],
  ['vale-ctl for nothing', '{"op":"vale-ctl"}\n', 'EINVAL', /a letter and a name are wanted/],
  ['vale-ctl for null', '{"op":"vale-ctl","command":null}\n', 'EINVAL', /a letter and a name are wanted/],
  ['vale-ctl without a name', '{"op":"vale-ctl","command":{"letter":"n"}}\n', 'EINVAL', /a letter and a name/],
  [
    'vale-ctl with a number as rings',
    '{"op":"vale-ctl","command":{"letter":"n","name":"v","config":5}}\n',
    'EINVAL',
    /a letter and a name/,
  ],
  ['an unknown letter', '{"op":"vale-ctl","command":{"letter":"q","name":"v"}}\n', 'EINVAL', /there is no -q here/],
  ['a buffer size between', '{"op":"open","port":"vale0:x","options":{"bufSize":100}}\n', 'EINVAL', /multiple of 64/],
  [
    'more memory than there is',
    '{"op":"open","port":"vale0:x","options":{"txSlots":4096,"rxSlots":4096,"txRings":11,"rxRings":11,"bufSize":65472}}\n',
    'ENOMEM',
    /contiguous bytes left in the arena/,
  ],
];

test('malformed requests are answered with what is wrong, and the daemon goes on', () =>
  withDaemon('', async (lab) => {
    for (const [name, bytes, errno, says] of MALFORMED) {
      const reply = JSON.parse(await ask(lab, bytes)) as Extract<ControlReply, { ok: false }>;
      assert.equal(reply.ok, false, name);
      assert.equal(reply.errno, errno, `${name}: ${reply.error}`);
      assert.match(reply.error, says, name);
    }
    assert.equal(lab.status.regions.length, 0, 'nothing was kept');
    const port = await openPort('vale0:x', { runDir: lab.dir });
    await port.close();
  }));

test('a request in pieces, and more after it in the last', () =>
  withDaemon('', async (lab) => {
    const socket = await connect(lab);
    for (const piece of [...'{"op":"list"', '}\n{"op":"stop"}\n']) {
      socket.write(piece);
      await new Promise((resolve) => setImmediate(resolve));
    }
    let text = '';
    for await (const chunk of socket) text += String(chunk);
    assert.equal(text.split('\n').length, 2, 'one reply');
    assert.equal((JSON.parse(text) as ControlReply).ok, true);
    const { connection } = await controlRequest(lab.dir, { op: 'list' });
    closeFd(connection);
  }));

test('an open whose client is gone before the answer, or does not take its descriptors, leaves nothing', () =>
  withDaemon('', async (lab) => {
    // Everything has started and has been used once.
    await (await openPort('vale0:x', { runDir: lab.dir })).close();
    await eventually('the port is gone', () => lab.status.regions.length === 0);
    await setTimeout(100);
    const before = openFds();
    for (let i = 0; i < 20; i++) {
      const socket = await connect(lab);
      socket.write('{"op":"open","port":"vale0:x"}\n');
      if (i % 2 === 0) await setTimeout(i);
      socket.destroy();
      await setTimeout(i % 5);
      await eventually('the port is gone', () => lab.status.domains.length === 0 && lab.status.regions.length === 0);
    }
    await eventually('descriptors are back', () => openFds() <= before);
  }));

test('R21: sockets are for their owner only; ports and VMs', () =>
  withDaemon('vms: { fw: { ports: [vale0:fw] } }', async (lab) => {
    for (const socket of [lab.controlSocket, ...lab.status.vms[0]!.sockets]) {
      assert.equal(statSync(socket).mode & 0o777, 0o600, socket);
    }
    assert.equal(statSync(lab.dir).mode & 0o777, 0o700);
  }));

const uid = process.getuid!();
const limited = `users: { ${uid}: { ports: ["vale0:*", "vale1:a?"], maxPorts: 2, maxMemory: 20M } }`;

test('R21: names that the configuration does not give a user are refused, and the reply says so', () =>
  withDaemon(limited, async (lab) => {
    const open = (name: string): Promise<NetmapPort> => openPort(name, { runDir: lab.dir });
    const text = new RegExp(`the configuration does not let user ${uid} open this port`);
    for (const name of ['vale1:b', 'vale1:abc', 'vale2:x', 'vale:x']) {
      await assert.rejects(open(name), { code: 'EPERM', message: text });
    }
    for (const name of ['vale0:anything', 'vale1:a1']) await (await open(name)).close();
  }));

test('R21: no user gets more ports or memory than the configuration says, also with many requests at a time', () =>
  withDaemon(limited, async (lab) => {
    const tries = await Promise.allSettled(
      Array.from({ length: 12 }, (_, i) => openPort(`vale0:p${i}`, { runDir: lab.dir, txSlots: 64, rxSlots: 64 })),
    );
    const open = tries.flatMap((t) => (t.status === 'fulfilled' ? [t.value] : []));
    const errors = tries.flatMap((t) => (t.status === 'rejected' ? [t.reason as Error] : []));
    assert.equal(open.length, 2);
    for (const e of errors)
      assert.match(e.message, new RegExp(`user ${uid} has 2 ports open, all that maxPorts allows: EDQUOT`));
    for (const port of open) await port.close();
    await eventually('they are gone', () => lab.status.regions.length === 0);
    const first = await openPort('vale0:big', { runDir: lab.dir });
    await assert.rejects(
      openPort('vale0:bigger', { runDir: lab.dir, txSlots: 4096, rxSlots: 4096 }),
      /the port needs \d+ bytes; user \d+ has \d+ bytes of regions, and maxMemory allows 20971520: EDQUOT/,
    );
    const second = await openPort('vale0:small', { runDir: lab.dir, txSlots: 64, rxSlots: 64 });
    await first.close();
    await second.close();
  }));

test('R21: a monitor counts as large as it is: as its port says, or its own name', () =>
  withDaemon(limited.replace('20M', '24M').replace('maxPorts: 2', 'maxPorts: 9'), async (lab) => {
    const open = (name: string): Promise<NetmapPort> => openPort(name, { runDir: lab.dir });
    const counted = async (name: string): Promise<number> => {
      const why = await open(name).then(
        (port) => port.close().then(() => ''),
        (e: Error) => e.message,
      );
      return Number(/needs (\d+) bytes/.exec(why)?.[1] ?? 0);
    };
    // A small port: its monitor is small, though the default would be a large one.
    const small = await open('vale0:s@conf:slots=64');
    const one = await open('vale0:s/r');
    const real = lab.status.regions.reduce((sum, region) => sum + region.bytes, 0);
    assert.ok(real < 2 * 2 ** 20, `${real} bytes`);
    assert.equal(await counted('vale0:s/r@conf:rx-slots=512'), 0, 'it fits');
    // A large one, and a small one with a long ring: their monitors are as large.
    const large = await open('vale0:l@conf:rx-rings=7,tx-slots=64');
    assert.ok((await counted('vale0:l/r')) > 14 * 2 ** 20);
    assert.ok((await counted('vale0:l/r@conf:rx-slots=4096')) > 56 * 2 ** 20);
    for (const port of [one, small, large]) await port.close();
  }));

test('R21: a region by name counts as a whole, once, for the user who makes it', () =>
  withDaemon(limited.replace('20M', '200M').replace('maxPorts: 2', 'maxPorts: 9'), async (lab) => {
    const open = (name: string): Promise<NetmapPort> => openPort(name, { runDir: lab.dir, txSlots: 64, rxSlots: 64 });
    const first = await open('vale0:a@r1');
    const second = await open('vale0:b@r1');
    await assert.rejects(open('vale0:c@r2'), /the port needs 134217728 bytes; user \d+ has 134217728 bytes.*: EDQUOT/);
    await first.close();
    await assert.rejects(open('vale0:c@r2'), /EDQUOT/, 'the second holds it still');
    await second.close();
    await eventually('the region is gone', () => lab.status.regions.length === 0);
    await (await open('vale0:c@r2')).close();
  }));

test('R21: another user: refused without a word in the configuration, let in by it; may not stop the daemon', async (t) => {
  if (uid !== 0) return t.skip('needs root, to be another user for a moment');
  const nobody = 65534;
  await withDaemon('', async (lab) => {
    const { error } = await asUser(nobody, lab.dir, { op: 'open', port: 'vale0:x' });
    assert.match(error!, /EACCES/);
  });
  await withDaemon(`users: { ${nobody}: { ports: ["vale0:x"] } }\nvms: { fw: { ports: [vale0:fw] } }`, async (lab) => {
    chmodSync(lab.dir, 0o711);
    assert.equal(statSync(lab.controlSocket).mode & 0o777, 0o666);
    assert.match((await asUser(nobody, lab.dir, { op: 'open', port: 'vale0:x' })).reply!, /"ok":true/);
    assert.match(
      (await asUser(nobody, lab.dir, { op: 'open', port: 'vale0:y' })).reply!,
      /the configuration does not let user 65534 open this port: EPERM/,
    );
    assert.match((await asUser(nobody, lab.dir, { op: 'stop' })).reply!, /only the user of the daemon and root/);
    assert.match((await asUser(nobody, lab.dir, undefined, `${lab.dir}/vm/fw/ptnet0.sock`)).error!, /EACCES/);
    assert.match((await asUser(nobody + 1, lab.dir, { op: 'open', port: 'vale0:x' })).reply!, /EPERM/);
  });
  return undefined;
});

test('R21: leave to watch ports is none to open them, whatever stands behind their names', () =>
  withDaemon(
    `users: { ${uid}: { ports: ["vale0:*/r", "vale0:a/*", "vale1:mine", "@lab"] } }\nvms: { fw: { ports: [vale0:a] } }`,
    async (lab) => {
      const mine = await openPort('vale1:mine@lab', { runDir: lab.dir });
      const watching = await openPort('vale0:a/r', { runDir: lab.dir });
      for (const name of ['vale0:b@share=vale1:mine/r', 'vale0:b@lab@share=vale1:mine/r', 'vale0:a/x', 'vale0:b/x']) {
        await assert.rejects(
          openPort(name, { runDir: lab.dir }),
          /does not let user \d+ open this port|both name a region/,
        );
      }
      await watching.close();
      await mine.close();
    },
  ));

test('R21: who may not open a port does not hear whether it or its interface exists', () =>
  withDaemon(`users: { ${uid}: { ports: ["vale1:*"] } }\nvms: { fw: { ports: [vale0:here] } }`, async (lab) => {
    const answer = (name: string): Promise<string> =>
      openPort(name, { runDir: lab.dir }).then(
        () => 'opened',
        (e: Error) => e.message.replaceAll(/netmap:\w+|vale0:\w+/g, 'PORT'),
      );
    const names: readonly (readonly [string, string])[] = [
      ['netmap:lo', 'netmap:nosuch0'],
      ['netmap:lo^', 'netmap:nosuch0^'],
      ['netmap:lo/r', 'netmap:nosuch0/r'],
      ['netmap:lo/R', 'netmap:nosuch0/R'],
      ['vale0:here/r', 'vale0:nosuch/r'],
      ['vale0:here/z', 'vale0:nosuch/z'],
    ];
    for (const [there, not] of names) {
      const said = await answer(there);
      assert.match(said, /does not let user \d+ open this port: EPERM/, there);
      assert.equal(await answer(not), said, not);
    }
  }));

test('connections beyond the limit are answered with the reason', () =>
  withDaemon('', async (lab) => {
    const held: Socket[] = [];
    while (held.length < 1024) held.push(await connect(lab));
    const extra = await connect(lab);
    extra.on('error', () => undefined);
    let text = '';
    for await (const chunk of extra) text += String(chunk);
    assert.match(text, /takes no more connections: user \d+ has 1024 connections open of 1024 in all.*EMFILE/);
    for (const socket of held) socket.destroy();
    await eventually('it takes connections again', async () => {
      try {
        const { connection } = await controlRequest(lab.dir, { op: 'list' });
        closeFd(connection);
        return true;
      } catch {
        return false;
      }
    });
  }));

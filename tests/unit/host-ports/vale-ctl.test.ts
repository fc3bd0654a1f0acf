/** vale-ctl's operations: persistent ports that come, are attached and detached while they run, and go; 254 ports. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { POLLIN, valeCtl } from '../../../src/api/index.ts';
import { parseValeCtl } from '../../../src/cli/commands/vale-ctl.ts';
import { BROADCAST, frame, mac } from '../datapath/rig.ts';
import { Lab } from './support.ts';

let lab: Lab;
before(async () => {
  lab = await Lab.start({ threads: 2 });
});
after(() => lab.stop());

const ctl = (...args: Parameters<typeof valeCtl>): ReturnType<typeof valeCtl> => valeCtl(args[0], lab.runDir);

function send(port: Awaited<ReturnType<Lab['open']>>, bytes: Uint8Array): void {
  const ring = port.txRings[0]!;
  port.m.u8.set(bytes, ring.bufOfs(ring.head));
  ring.setLen(ring.head, bytes.length);
  ring.head = ring.cur = ring.next(ring.head);
  port.txsync();
}

function receive(port: Awaited<ReturnType<Lab['open']>>, timeout = 2000): number {
  const ready = port.poll(POLLIN, timeout);
  let n = 0;
  for (const ring of port.rxRings) {
    for (; ring.head !== ring.tail; n++) ring.head = ring.cur = ring.next(ring.head);
  }
  if (ready !== 0) port.rxsync();
  return n;
}

test('a life: made, listed, opened, attached, moved to another switch and off it while it runs, removed', async () => {
  const regions = (await lab.regions()).length;
  const { info } = await ctl({ letter: 'n', name: 'v0', config: '64,32' });
  assert.deepEqual(
    { ...info, memsize: 0, memId: 0 },
    { memsize: 0, txSlots: 64, rxSlots: 32, txRings: 1, rxRings: 1, memId: 0 },
  );
  await assert.rejects(ctl({ letter: 'n', name: 'v0' }), { code: 'EEXIST' });
  assert.deepEqual((await ctl({ letter: 'l' })).ports, []);
  const v = await lab.open('netmap:v0');
  assert.deepEqual([v.txRings[0]!.numSlots, v.rxRings[0]!.numSlots], [64, 32]);
  send(v, frame(BROADCAST, mac(1)));
  const a = await lab.open('vale1:a');
  // Found by its thread: vale1 may live on the other one, where an open port cannot go.
  const attached = await ctl({ letter: 'a', name: 'vale1:v0' }).then(
    () => true,
    (e: NodeJS.ErrnoException) => {
      assert.equal(e.code, 'EBUSY', e.message);
      assert.match(e.message, /another datapath thread/);
      return false;
    },
  );
  if (!attached) {
    await lab.close(v);
    await lab.until(([...domains]) =>
      domains.every((d) => d.ports.every((p) => p.name !== 'netmap:v0' || 'nobody' in p.owner)),
    );
    await ctl({ letter: 'a', name: 'vale1:v0' });
  }
  const w = attached ? v : await lab.open('vale1:v0');
  const ports = (await ctl({ letter: 'l' })).ports!;
  assert.deepEqual(ports.map((p) => p.name).toSorted(), ['vale1:a', 'vale1:v0']);
  assert.deepEqual(
    (await ctl({ letter: 'l', name: 'vale1:v0' })).ports,
    ports.filter((p) => p.name === 'vale1:v0'),
  );
  send(w, frame(BROADCAST, mac(1)));
  assert.equal(receive(a), 1);
  send(a, frame(mac(1), mac(2)));
  assert.equal(receive(w), 1);
  // Off and on again while both run.
  assert.equal(
    (await ctl({ letter: 'd', name: 'vale1:v0' })).portIndex,
    ports.find((p) => p.name === 'vale1:v0')!.portIdx,
  );
  send(w, frame(BROADCAST, mac(1)));
  send(a, frame(mac(1), mac(2)));
  assert.equal(receive(a, 50) + receive(w, 50), 0);
  await ctl({ letter: 'a', name: 'vale1:v0' });
  for (let i = 0; i < 200; i++) {
    send(w, frame(mac(2), mac(1)));
    assert.equal(receive(a), 1);
    send(a, frame(mac(1), mac(2)));
    assert.equal(receive(w), 1);
  }
  await assert.rejects(ctl({ letter: 'r', name: 'v0' }), /attached as vale1:v0/);
  await ctl({ letter: 'd', name: 'vale1:v0' });
  await assert.rejects(ctl({ letter: 'r', name: 'v0' }), /it is open/);
  await lab.close(w, a);
  await lab.until((domains) => domains.every((d) => d.ports.every((p) => 'nobody' in p.owner)));
  await ctl({ letter: 'r', name: 'v0' });
  await assert.rejects(ctl({ letter: 'g', name: 'v0' }), { code: 'ENXIO' });
  assert.equal((await lab.regions()).length, regions);
});

test('what cannot be is refused with its reason', async () => {
  await assert.rejects(ctl({ letter: 'a', name: 'vale1:nosuch' }), /vale-ctl -n nosuch/);
  await assert.rejects(ctl({ letter: 'a', name: 'netmap:x' }), /valeSSS:INTERFACE/);
  await assert.rejects(ctl({ letter: 'n', name: 'a:b' }), /port name/);
  await assert.rejects(ctl({ letter: 'n', name: 'x', config: '5,x' }), /\^/);
  await assert.rejects(ctl({ letter: 'd', name: 'vale1:none' }), { code: 'ENOENT' });
  await assert.rejects(ctl({ letter: 'a', name: 'vale1:x@lab' }), /valeSSS:INTERFACE/);
  await assert.rejects(ctl({ letter: 'n', name: 'x', memId: 'a/z' }), /-m a\/z: not the name of a region/);
  await ctl({ letter: 'n', name: 'mem', memId: 'lab' });
  await assert.rejects(ctl({ letter: 'a', name: 'vale1:mem', memId: 'other' }), /it has its memory already \(@lab\)/);
  await ctl({ letter: 'a', name: 'vale1:mem', memId: 'lab' });
  await ctl({ letter: 'd', name: 'vale1:mem' });
  await ctl({ letter: 'r', name: 'mem' });
  const a = await lab.open('vale1:eph');
  await assert.rejects(ctl({ letter: 'd', name: 'vale1:eph' }), /goes with them/);
  for (const name of ['', 'netmap:']) await assert.rejects(ctl({ letter: 'g', name }), { code: 'ENXIO' });
  await lab.close(a);
});

test('R2: a port on its way to another thread is not looked at by who lists ports: its memory is not there then', async () => {
  const a = await lab.open('vale2:a');
  const names = Array.from({ length: 8 }, (_, i) => `w${i}`);
  for (const name of names) await ctl({ letter: 'n', name, config: '64,64' });
  const threadOf = (name: string): number | undefined =>
    lab.daemon.status().domains.find((d) => d.ports.some((p) => p.name === name))?.thread;
  const there = threadOf('vale2:a');
  const moved = names.filter((name) => threadOf(`netmap:${name}`) !== there);
  assert.ok(moved.length > 0);
  let listed = 0;
  let next: NodeJS.Immediate;
  const list = (): void => {
    lab.daemon.status();
    listed++;
    next = setImmediate(list);
  };
  list();
  for (const name of names) await ctl({ letter: 'a', name: `vale2:${name}` });
  clearImmediate(next!);
  assert.ok(listed > names.length);
  assert.deepEqual(
    names.map((name) => threadOf(`vale2:${name}`)),
    names.map(() => there),
  );
  for (const name of names) await ctl({ letter: 'd', name: `vale2:${name}` });
  for (const name of names) await ctl({ letter: 'r', name });
  await lab.close(a);
});

test('254 ports to a switch, no more; all are given back', async () => {
  await lab.until((domains) => domains.length === 0);
  for (let i = 0; i < 254; i++) {
    await ctl({ letter: 'n', name: `m${i}`, config: '2,2' });
    assert.equal((await ctl({ letter: 'a', name: `vale3:m${i}` })).portIndex, i);
  }
  await ctl({ letter: 'n', name: 'm254', config: '2,2' });
  await assert.rejects(ctl({ letter: 'a', name: 'vale3:m254' }), { code: 'ENOSPC' });
  await assert.rejects(lab.open('vale3:more'), { code: 'ENOSPC' });
  for (let i = 0; i < 254; i++) await ctl({ letter: 'd', name: `vale3:m${i}` });
  for (let i = 0; i < 255; i++) await ctl({ letter: 'r', name: `m${i}` });
  await lab.until((domains, regions) => domains.length === 0 && regions.length === 0);
});

test('the command’s letters', () => {
  assert.deepEqual(parseValeCtl({}), { letter: 'l' });
  assert.deepEqual(parseValeCtl({ l: 'vale0:a' }), { letter: 'l', name: 'vale0:a' });
  assert.deepEqual(parseValeCtl({ n: 'v', C: '1,2', m: '5' }), { letter: 'n', name: 'v', config: '1,2', memId: '5' });
  assert.deepEqual(parseValeCtl({ d: 'vale0:v' }), { letter: 'd', name: 'vale0:v' });
  assert.throws(() => parseValeCtl({ a: 'x', d: 'y' }), /only one of -a, -d/);
  assert.deepEqual(parseValeCtl({ h: 'vale0:eth0' }), { letter: 'h', name: 'vale0:eth0' });
  assert.throws(() => parseValeCtl({ p: 'x' }), /when it polls/);
  for (const letter of ['a', 'h'] as const) {
    const name = 'vale0:eth0';
    assert.deepEqual(parseValeCtl({ [letter]: name, m: 'lab' }), { letter, name, memId: 'lab' });
  }
  assert.throws(() => parseValeCtl({ r: 'x', C: '5' }), /-C goes with -n/);
  assert.throws(() => parseValeCtl({ d: 'x', m: '5' }), /-m goes with -n, -a and -h/);
});

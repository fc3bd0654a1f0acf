/** The configuration: defaults, faults with their place, flags over the file, and who may open what (R21). */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import {
  accessOf,
  ConfigError,
  defaultConfig,
  loadConfig,
  mayOpen,
  mergeFlags,
  parseConfig,
} from '../../../src/host/config.ts';

/** The faults of a configuration that must be refused. */
function faults(text: string): readonly string[] {
  try {
    parseConfig(text, 'p.yaml');
  } catch (e) {
    assert.ok(e instanceof ConfigError, String(e));
    return e.faults;
  }
  return assert.fail('accepted');
}

test('an empty document gives 1 ring, 1024 slots, buffers of 2112 bytes', () => {
  const { ports, threads, vms, users } = defaultConfig();
  const rings = { txRings: 1, rxRings: 1, txSlots: 1024, rxSlots: 1024 };
  assert.deepEqual(ports, { ...rings, bufSize: 2112, vnetHdr: true, hugePages: false });
  assert.equal(threads, 1);
  assert.deepEqual(vms, {});
  assert.equal(users.size, 0);
  assert.deepEqual(parseConfig('ports:\nvms:\n', 'p.yaml').ports, ports);
});

test('the example of docs/configuration.md parses, and its table has every key', () => {
  const text = readFileSync('docs/configuration.md', 'utf8');
  const example = /```yaml\n([\s\S]*?)```/.exec(text)?.[1];
  assert.ok(example);
  const config = parseConfig(example, 'docs/configuration.md');
  assert.deepEqual(config.vms['fw']?.ports, ['vale0:fw', 'vale1:fw']);
  assert.equal(config.users.get(0)?.maxMemory, 2 ** 30);
  for (const part of ['', 'ports: {', 'vms: {a: {', 'users: {0: {'] as const) {
    const closing = '}'.repeat(part.split('{').length - 1);
    const [fault = ''] = faults(`${part}nonsense: 1${closing}`).filter((f) => f.includes('unknown key'));
    const allowed = /allowed: (.*)$/.exec(fault)?.[1]?.split(', ') ?? assert.fail(fault);
    for (const key of allowed) assert.match(text, new RegExp(`\\| .*\\b${key}\\b.* \\|`), key);
  }
});

test('a fault names file, line, column, path, value and what is allowed', () => {
  assert.deepEqual(faults('threads: 1\nvms:\n  fw:\n    ports: [vale0:a, val0:b]\n'), [
    'p.yaml:4:22: vms.fw.ports[1]: is "val0:b", must be a port name (docs/names.md), e.g. vale0:fw or netmap:x{1@lab: begins with none of ' +
      'valeSSS: (a port of the VALE switch valeSSS), netmap: (an interface or pipe), null: (a sink) (at character 1)',
  ]);
  assert.deepEqual(faults('ports:\n  txSlots: 5000\n  rxRings: one\n'), [
    'p.yaml:2:12: ports.txSlots: is 5000, must be a whole number from 2 to 4096',
    'p.yaml:3:12: ports.rxRings: is "one", must be a whole number from 1 to 16',
  ]);
  assert.deepEqual(faults('threads: 2\n\nthread: 1\n'), [
    'p.yaml:3:1: thread: unknown key; allowed: runDir, threads, cpus, logLevel, arenaBytes, ports, vms, regions, interfaces, users',
  ]);
  assert.deepEqual(faults('vms:\n  fw: {}\n'), [
    'p.yaml:2:3: vms.fw.ports: is missing, must be a list of port names, e.g. [vale0:fw]',
  ]);
  assert.deepEqual(faults('vms:\n  "a b":\n    ports: [vale0:a]\n'), [
    'p.yaml:2:3: vms.a b: must be a VM name: letters, digits, "_", "." and "-", at most 32, e.g. fw',
  ]);
  assert.deepEqual(faults('- 1\n'), [
    'p.yaml:1:1: the document: is a list, must be a mapping with keys of: runDir, threads, cpus, logLevel, arenaBytes, ports, vms, regions, interfaces, users',
  ]);
});

test('YAML that does not parse is a fault with its place', () => {
  const [fault = ''] = faults('vms: {fw\nx: [');
  assert.match(fault, /^p\.yaml:\d+:\d+: /);
  assert.match(faults('threads: 1\nthreads: 2\n')[0] ?? '', /^p\.yaml:2:1: .*unique/);
});

test('one port does not serve two devices', () => {
  assert.deepEqual(faults('vms:\n  a: {ports: [vale0:x]}\n  b: {ports: [vale0:y, vale0:x]}\n'), [
    'p.yaml:3:24: vms.b.ports[1]: vale0:x is already a port of a: a port serves one device',
  ]);
  // Each monitor is a port of its own.
  const { vms } = parseConfig('vms:\n  a: {ports: [vale0:x/rt]}\n  b: {ports: [vale0:x/rt, vale0:x/rt]}\n', 'p');
  assert.deepEqual(vms['b']?.ports, ['vale0:x/rt', 'vale0:x/rt']);
});

test('sizes are bytes or K, M, G', () => {
  assert.equal(parseConfig('arenaBytes: 64M', 'p').arenaBytes, 64 * 2 ** 20);
  assert.equal(parseConfig('arenaBytes: 4G', 'p').arenaBytes, 4 * 2 ** 30);
  assert.equal(parseConfig('arenaBytes: 67108864', 'p').arenaBytes, 64 * 2 ** 20);
  for (const bad of ['5G', '1K', 'much', '-1', '1.5G']) {
    assert.match(faults(`arenaBytes: ${bad}`)[0] ?? '', /^p\.yaml:1:13: arenaBytes: must be a size/);
  }
});

test('users are names or uids, each once', () => {
  assert.deepEqual(parseConfig('users: {root: {ports: ["*"]}}', 'p').users.get(0), {
    ports: ['*'],
    maxPorts: 16,
    maxMemory: 256 * 2 ** 20,
  });
  assert.deepEqual(faults('users:\n  no-such-user-here: {ports: []}\n'), [
    'p.yaml:2:3: users.no-such-user-here: no such user on this system',
  ]);
  assert.match(faults('users: {root: {ports: []}, 0: {ports: []}}')[0] ?? '', /uid 0 is listed twice/);
});

test('R21: own user and root may open any port, others what the configuration says', () => {
  const config = parseConfig('users: {4242: {ports: ["vale1:*", "vale2:t?"], maxPorts: 2, maxMemory: 8M}}', 'p');
  assert.ok(mayOpen(accessOf(config, 0, 1000) ?? assert.fail(), 'vale9:z'));
  assert.ok(mayOpen(accessOf(config, 1000, 1000) ?? assert.fail(), 'vale9:z'));
  assert.equal(accessOf(config, 1001, 1000), undefined);
  const access = accessOf(config, 4242, 1000) ?? assert.fail();
  assert.equal(access.maxPorts, 2);
  assert.equal(access.maxMemory, 8 * 2 ** 20);
  assert.deepEqual(
    ['vale1:a', 'vale1:', 'vale2:tx', 'vale2:txx', 'vale2:t', 'vale11:a', 'xvale1:a'].filter((p) => mayOpen(access, p)),
    ['vale1:a', 'vale1:', 'vale2:tx'],
  );
});

test('R21: a listed user is held to the list, root too', () => {
  const config = parseConfig('users: {0: {ports: ["vale1:a.b"]}}', 'p');
  const access = accessOf(config, 0, 0) ?? assert.fail();
  assert.equal(mayOpen(access, 'vale1:a.b'), true);
  assert.equal(mayOpen(access, 'vale1:axb'), false);
});

test('R21: the own user needs no entry in /etc/passwd', (t) => {
  if (process.getuid!() !== 0) return t.skip('needs root, to be another user for a moment');
  const module = JSON.stringify(new URL('../../../src/host/config.js', import.meta.url).href);
  const script = `
    const { accessOf, defaultConfig } = await import(${module});
    const config = defaultConfig();
    process.setuid(54321);
    console.log(accessOf(config, 54321).ports, accessOf(config, 54322));`;
  const args = ['--input-type=module', '-e', script];
  assert.equal(execFileSync(process.execPath, args, { encoding: 'utf8' }), "[ '*' ] undefined\n");
});

test('CPUs are numbers, each once, as many as datapath threads', () => {
  const { threads, cpus } = parseConfig('cpus: [2, 0]', 'p.yaml');
  assert.deepEqual([threads, cpus], [2, [2, 0]]);
  for (const list of ['[]', '[0, 0]', '1', '[0, 1024]', `[${Array.from({ length: 17 }, (_, i) => i).join()}]`]) {
    assert.match(faults(`cpus: ${list}`)[0] ?? '', /^p\.yaml:1:\d+: cpus/, list);
    assert.throws(
      () => mergeFlags(defaultConfig(), { cpus: list.replace(/[[\] ]/g, '').replace(/^1$/, 'x') }),
      ConfigError,
    );
  }
  assert.deepEqual(faults('threads: 2\ncpus: [1]'), [
    'p.yaml:2:1: cpus: 1 CPUs for 2 datapath threads: must be one for each',
  ]);
  assert.throws(() => mergeFlags(parseConfig('cpus: [0, 1]', 'p'), { threads: '3' }), /2 CPUs for 3 datapath threads/);
});

test('flags go over the file', () => {
  const file = parseConfig(
    'threads: 2\nvms: {a: {ports: [vale0:a], trustUnsealedMemory: true, vnetHdr: false}, b: {ports: [vale0:b]}}',
    'p',
  );
  const merged = mergeFlags(file, {
    vm: ['a=vale1:a,vale1:b', 'c=vale0:c'],
    threads: '3',
    runDir: '/r',
    logLevel: 'debug',
  });
  assert.deepEqual(merged.vms, {
    a: { ports: ['vale1:a', 'vale1:b'], trustUnsealedMemory: true, vnetHdr: false },
    b: { ports: ['vale0:b'], trustUnsealedMemory: false },
    c: { ports: ['vale0:c'], trustUnsealedMemory: false },
  });
  assert.equal(merged.threads, 3);
  assert.equal(merged.runDir, '/r');
  assert.equal(merged.logLevel, 'debug');
  assert.equal(mergeFlags(file, {}).threads, 2);
  const pinned = mergeFlags(defaultConfig(), { cpus: '3,0' });
  assert.deepEqual([pinned.threads, pinned.cpus], [2, [3, 0]]);
  assert.equal(mergeFlags(file, {}).cpus, undefined);
});

test('wrong flags are refused, all at once', () => {
  const flags = { vm: ['a', 'b=vale0:b,', '=vale0:c', 'd=vale0:d', 'd=vale0:e'], threads: '0', logLevel: 'loud' };
  assert.throws(
    () => mergeFlags(defaultConfig(), flags),
    (e: ConfigError) => {
      assert.equal(e.faults.length, 6);
      assert.deepEqual(
        e.faults.map((f) => f.split(':')[0]),
        ['--vm a', '--vm b=vale0', '--vm =vale0', '--vm d=vale0', '--threads 0', '--log-level loud'],
      );
      return true;
    },
  );
  assert.throws(
    () => mergeFlags(defaultConfig(), { vm: ['a=vale0:x', 'b=vale0:x'] }),
    /vale0:x is a port of a and of b/,
  );
});

test('a file that cannot be read is a ConfigError', () => {
  assert.throws(
    () => loadConfig('/nonexistent/ptnet.yaml'),
    /cannot read the configuration: .*\/nonexistent\/ptnet.yaml/,
  );
});

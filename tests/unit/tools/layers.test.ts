/** Imports go one way, and docs/architecture.md says which; the linter itself is run on files that break it. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { test, type TestContext } from 'node:test';

/** Whether the project's lint lets a file of src import another. */
function mayImport(t: TestContext, from: string, to: string): boolean {
  const dir = mkdtempSync(join(tmpdir(), 'ptnet-lint-'));
  t.after(() => rmSync(dir, { recursive: true }));
  copyFileSync('.oxlintrc.json', join(dir, '.oxlintrc.json'));
  const file = join(dir, 'src', from);
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, `import { thing } from '${to}';\nexport const x = thing;\n`);
  const { status, stdout } = spawnSync(resolve('node_modules/.bin/oxlint'), ['--deny-warnings'], {
    cwd: dir,
    encoding: 'utf8',
  });
  assert.ok(status === 0 || stdout.includes('no-restricted-imports'), stdout);
  return status === 0;
}

test('layers: imports go one way', (t) => {
  assert.equal(mayImport(t, 'memory/a.ts', '../os/index.ts'), true);
  assert.equal(mayImport(t, 'host/daemon.ts', '../kloop/index.ts'), true);
  assert.equal(mayImport(t, 'memory/a.ts', '../kloop/index.ts'), false);
  assert.equal(mayImport(t, 'abi/a.ts', '../os/index.ts'), false);
  assert.equal(mayImport(t, 'vfio-user/a.ts', '../device/index.ts'), false);
  assert.equal(mayImport(t, 'api/a.ts', '../host/daemon.ts'), false);
  assert.equal(mayImport(t, 'cli/pkt-gen/a.ts', '../../kloop/index.ts'), false);
});

test('layers: only os makes native calls', (t) => {
  assert.equal(mayImport(t, 'os/a.ts', 'koffi'), true);
  assert.equal(mayImport(t, 'kloop/a.ts', 'koffi'), false);
});

test('layers: src imports no tests and no tools', (t) => {
  assert.equal(mayImport(t, 'device/a.ts', '../../tests/device/mock.ts'), false);
});

test('layers: docs/architecture.md says what the linter enforces', () => {
  const config = JSON.parse(readFileSync('.oxlintrc.json', 'utf8')) as {
    overrides: { files: string[]; rules: { 'no-restricted-imports'?: [string, { patterns: { regex: string }[] }] } }[];
  };
  const documented = new Map(
    [...readFileSync('docs/architecture.md', 'utf8').matchAll(/^src\/(\S+) +<- (.*)$/gm)].map(
      ([, folder = '', list = '']) => [folder, new Set(list === 'nothing' ? [] : list.split(', '))],
    ),
  );
  const layers = [...documented.keys(), 'datapath'];
  const enforced = config.overrides.filter((o) => o.rules['no-restricted-imports'] !== undefined);
  assert.deepEqual(
    enforced.map((o) => o.files[0]).toSorted(),
    [...documented.keys()].map((f) => `src/${f}/**`).toSorted(),
  );
  for (const { files, rules } of enforced) {
    const folder = files[0]?.split('/')[1] ?? assert.fail();
    const pattern = new RegExp(rules['no-restricted-imports']?.[1].patterns[0]?.regex ?? assert.fail());
    const allowed = layers.filter((to) => to !== folder && !pattern.test(`../${to}/index.ts`));
    assert.deepEqual(new Set(allowed), documented.get(folder), folder);
  }
});

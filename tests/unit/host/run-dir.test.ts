/** The run directory: private, one live daemon's, taken over from a killed one; and every text that refuses it. */
import assert from 'node:assert/strict';
import { chmodSync, existsSync, lstatSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, test } from 'node:test';
import { RunDir, RunDirError } from '../../../src/host/run-dir.ts';
import { closeFd, listenUnix } from '../../../src/os/index.ts';

const base = mkdtempSync(join(tmpdir(), 'ptnet-run-dir-'));
after(() => rmSync(base, { recursive: true, force: true }));
let n = 0;
const fresh = (): string => join(base, `d${n++}`, 'run');
const refuses = (path: string, says: RegExp): void => {
  assert.throws(
    () => new RunDir(path),
    (e: Error) => e instanceof RunDirError && says.test(e.message),
    String(says),
  );
};
const mode = (path: string): number => lstatSync(path).mode & 0o777;

test('R21: created with its parents, mode 0700; a directory that was open to others is closed', () => {
  const path = fresh();
  assert.equal(new RunDir(path).path, path);
  assert.equal(mode(path), 0o700);
  const open = fresh();
  mkdirSync(open, { recursive: true, mode: 0o777 });
  chmodSync(open, 0o777);
  assert.equal(new RunDir(open).path, open);
  assert.equal(mode(open), 0o700);
});

test('R21: where other users may open ports they can pass through, not list; VMs’ sockets stay private', () => {
  const path = fresh();
  const dir = new RunDir(path, true);
  assert.equal(mode(path), 0o711);
  assert.equal(mode(dirname(path)), 0o711, 'they have to get there');
  dir.vmSockets('fw');
  assert.equal(mode(join(path, 'vm', 'fw')), 0o700);
  assert.equal(mode(join(path, 'vm')), 0o700);
});

test('a live daemon’s directory is refused, with its process', () => {
  const path = fresh();
  const dir = new RunDir(path);
  refuses(
    path,
    new RegExp(
      `a daemon \\(process ${process.pid}\\) runs in ${path} already: stop it \\(ptnet stop\\), or choose another`,
    ),
  );
  assert.ok(existsSync(path));
  dir.close();
  refuses(path, /runs in .* already/);
  const shared = fresh();
  const other = new RunDir(shared, true);
  refuses(shared, /runs in .* already/);
  assert.equal(mode(other.path), 0o711, 'its users are not locked out');
});

test('what a killed daemon left is removed: control socket, VMs’ sockets; its record of offloads stays', () => {
  const path = fresh();
  mkdirSync(join(path, 'vm', 'old'), { recursive: true, mode: 0o700 });
  writeFileSync(join(path, 'ptnet.lock'), '1\n');
  writeFileSync(join(path, 'offloads.json'), '[]');
  closeFd(listenUnix(join(path, 'control.sock')));
  closeFd(listenUnix(join(path, 'vm', 'old', 'ptnet0.sock')));
  const dir = new RunDir(path);
  assert.equal(existsSync(dir.controlSocket), false);
  assert.equal(existsSync(join(path, 'vm')), false);
  assert.equal(existsSync(dir.offloads), true);
});

test('places that cannot be a run directory, each with its reason', () => {
  const file = join(base, 'file');
  writeFileSync(file, '');
  refuses(file, /cannot create the run directory: EEXIST.*choose another with --run-dir/);
  refuses(join(file, 'below'), /cannot create the run directory: ENOTDIR/);
  refuses('/proc/nowhere', /cannot create the run directory: ENOENT|EACCES|EPERM/);
  const link = join(base, 'link');
  mkdirSync(join(base, 'target'));
  symlinkSync(join(base, 'target'), link);
  refuses(link, /EEXIST|is not a directory/);
  const dangling = join(base, 'dangling');
  symlinkSync(join(base, 'nowhere'), dangling);
  refuses(dangling, /cannot create the run directory|is not a directory/);
  if (process.getuid!() !== 0) refuses('/', /belongs to user 0, not to you/);
});

test('R21: a directory full of other files is not made private: it is refused', () => {
  const path = fresh();
  mkdirSync(path, { recursive: true });
  chmodSync(path, 0o755);
  writeFileSync(join(path, 'somebody’s'), '');
  refuses(path, /has other files in it, and is not private \(mode 755\): choose another with --run-dir/);
  assert.equal(mode(path), 0o755);
});

test('a directory that cannot be written', () => {
  const path = fresh();
  mkdirSync(join(path, 'ptnet.lock'), { recursive: true, mode: 0o700 });
  refuses(path, /cannot write to the run directory: EISDIR.*; choose another with --run-dir/);
});

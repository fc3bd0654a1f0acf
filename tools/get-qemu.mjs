// get-qemu: prints the path of a QEMU that speaks vfio-user. See README.md.

import { chmodSync, existsSync, mkdirSync, readdirSync, renameSync, writeFileSync } from 'node:fs';
import { delimiter, join, resolve } from 'node:path';
import { DEBIAN_RELEASES, PrivateApt, machineRelease } from './lib/private-apt.mjs';
import { ToolError, addToCache, cacheEntries, progress, run, runTool } from './lib/tool.mjs';

const HELP = `Usage: tools/get-qemu [--fetch]

Prints the path of a qemu-system-x86_64 of version 10.1 or newer with the device vfio-user-pci. Takes, in this order:
  1. $PTNET_QEMU;
  2. qemu-system-x86_64 on PATH, if it is new enough;
  3. on Debian, the packages of a newer suite, unpacked into the cache folder (no root, the system stays as it is).

  --fetch   do not look at 1 and 2
  --help    this text
`;

const MIN_VERSION = [10, 1];
const PACKAGE = 'qemu-system-x86';
const BINARY = 'qemu-system-x86_64';
/** Bookworm and its backports end at QEMU 9.2. */
const OLDEST_RELEASE = 'trixie';

/** What of the packages a QEMU without a window needs; the rest (set-uid programs, documentation …) is thrown away. */
const KEPT_PATHS = [`usr/bin/${BINARY}`, 'usr/lib', 'usr/lib64', 'usr/share/qemu', 'usr/share/seabios'];

runTool('get-qemu', (args) => {
  if (args.includes('--help')) return process.stdout.write(HELP);
  const unknown = args.find((arg) => arg !== '--fetch');
  if (unknown) throw new ToolError(`unknown option ${unknown} (see --help)`);
  console.log(args.includes('--fetch') ? cachedQemu() : (qemuOfEnvironment() ?? qemuOnPath() ?? cachedQemu()));
});

/** Says why a QEMU cannot be used; '' if it can. */
function objection(qemu) {
  const asked = run(qemu, ['--version'], { timeout: 30_000 });
  if (!asked.ok) return asked.why;
  const version = /version (\d+)\.(\d+)(\S*)/.exec(asked.stdout);
  if (!version) return `${qemu} --version printed “${asked.stdout.split('\n')[0]}”`;
  if (!newEnough(version))
    return `${qemu} is version ${version[1]}.${version[2]}, needed is ${MIN_VERSION.join('.')} or newer`;
  const device = run(qemu, ['-device', 'vfio-user-pci,help'], { timeout: 30_000 });
  return device.ok ? '' : `${qemu} (${version[1]}.${version[2]}) was built without the device vfio-user-pci`;
}

/** `match` holds major and minor at 1 and 2. */
function newEnough(match) {
  const [major, minor] = [Number(match[1]), Number(match[2])];
  return major > MIN_VERSION[0] || (major === MIN_VERSION[0] && minor >= MIN_VERSION[1]);
}

function qemuOfEnvironment() {
  const qemu = process.env.PTNET_QEMU;
  if (!qemu) return null;
  const path = qemu.includes('/') ? resolve(qemu) : (findOnPath(qemu) ?? qemu);
  const why = objection(path);
  if (why) throw new ToolError(`PTNET_QEMU: ${why}`);
  return path;
}

function qemuOnPath() {
  const qemu = findOnPath(BINARY);
  if (!qemu) return null;
  const why = objection(qemu);
  if (why) progress(`not used: ${why}`);
  return why ? null : qemu;
}

function findOnPath(name) {
  const folders = (process.env.PATH ?? '').split(delimiter).filter((folder) => folder !== '');
  return folders.map((folder) => join(folder, name)).find((path) => existsSync(path));
}

function cachedQemu() {
  const cached = cacheEntries('qemu-').find(isHealthy);
  return wrapperIn(cached ?? addToCache(build, isHealthy));
}

function wrapperIn(entry) {
  return join(entry, BINARY);
}

function isHealthy(entry) {
  return existsSync(wrapperIn(entry)) && objection(wrapperIn(entry)) === '';
}

/** Fills `work` with the packages of the first suite that has a QEMU new enough. */
function build(work) {
  if (process.arch !== 'x64')
    throw new ToolError(`this tool knows x86-64 hosts only, not ${process.arch}; set PTNET_QEMU`);
  const release = machineRelease();
  if (!release) {
    throw new ToolError(
      `no QEMU ${MIN_VERSION.join('.')} or newer on PATH, and this is not a Debian whose packages could be fetched; set PTNET_QEMU`,
    );
  }
  const first = Math.max(DEBIAN_RELEASES.indexOf(release), DEBIAN_RELEASES.indexOf(OLDEST_RELEASE));
  for (const candidate of DEBIAN_RELEASES.slice(first)) {
    progress(`looking for QEMU in Debian ${candidate} …`);
    const suites = [candidate, `${candidate}-backports`];
    const apt = new PrivateApt(join(work, candidate), release, (suffix) => (suffix === '' ? suites : []));
    const complaint = apt.update();
    const versions = apt.versions(PACKAGE);
    if (versions.length === 0 && complaint) throw new ToolError(`${complaint} (or set PTNET_QEMU)`);
    const found = versions.find(({ version }) => {
      const match = /^(?:\d+:)?(\d+)\.(\d+)/.exec(version);
      return match !== null && newEnough(match);
    });
    if (found) return unpack(apt, found, work);
  }
  throw new ToolError(`no Debian suite has QEMU ${MIN_VERSION.join('.')} or newer; set PTNET_QEMU`);
}

function unpack(apt, { version, suite }, work) {
  const packages = apt.closure(PACKAGE, suite);
  progress(`fetching QEMU ${version} from ${suite} (${packages.length} packages) …`);
  const unpacked = join(work, 'unpacked');
  apt.unpack(packages, unpacked);

  const folder = join(work, 'entry');
  for (const path of KEPT_PATHS) {
    mkdirSync(resolve(folder, path, '..'), { recursive: true });
    renameSync(join(unpacked, path), join(folder, path));
  }
  writeFileSync(wrapperIn(folder), wrapperScript(folder));
  chmodSync(wrapperIn(folder), 0o755);
  return { name: `qemu-${version.replace(/^\d+:/, '')}`, folder };
}

/** Starts QEMU through the loader and with the libraries that were unpacked beside it; `exec` keeps the process id. */
function wrapperScript(folder) {
  const libraries = readdirSync(join(folder, 'usr/lib')).find((name) => name.endsWith('-linux-gnu'));
  const loader = readdirSync(join(folder, 'usr/lib64')).find((name) => name.startsWith('ld-linux'));
  if (!libraries || !loader) throw new ToolError('the packages contain no loader or no libraries');
  return `#!/bin/sh
# Made by ptnet's tools/get-qemu.
here=$(dirname "$(readlink -f "$0")")
libraries=$here/usr/lib/${libraries}
unset LD_PRELOAD LD_LIBRARY_PATH
export QEMU_MODULE_DIR="$libraries/qemu"
exec "$here/usr/lib64/${loader}" --inhibit-cache --argv0 "$0" --library-path "$libraries" \\
  "$here/usr/bin/${BINARY}" -L "$here/usr/share/qemu" -L "$here/usr/share/seabios" "$@"
`;
}

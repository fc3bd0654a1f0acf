// get-guest: makes a small Linux guest for tests and prints where it is. See README.md.

import { createHash } from 'node:crypto';
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  readdirSync,
  realpathSync,
  renameSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { CpioWriter } from './lib/cpio.mjs';
import { DEBIAN_RELEASES, PrivateApt, machineRelease } from './lib/private-apt.mjs';
import { ToolError, addToCache, cacheEntries, mustRun, progress, runTool } from './lib/tool.mjs';

const HELP = `Usage: tools/get-guest [--cards] [--with-node] [--add SOURCE=TARGET]… [--out FILE]

Makes a Linux guest from Debian's kernel and busybox packages (no root, the system stays as it is) and prints
  {"kernel": "…", "initrd": "…"}
What the guest does, and how to talk with it, is written in tools/README.md.

  --cards               a newer kernel, with drivers of network cards (igb) that have AF_XDP zero copy
  --with-node           put this machine's Node into the guest, as /usr/bin/node
  --add SOURCE=TARGET   put a file or folder into the guest (TARGET is an absolute path there); needs --out
  --out FILE            write the initrd to FILE instead of the cache folder
  --help                this text
`;

/** Modules for drivers in the guest's user space (vfio_virqfd is a module of its own only before Linux 6.2), and for TAP interfaces. */
const MODULES = ['irqbypass', 'vfio', 'vfio_virqfd', 'vfio_iommu_type1', 'vfio_pci', 'tun'];

/** What the guest's kernel is: `prefix` of its entry in the cache. */
const SMALL = { prefix: 'guest-', kernelPackage: 'linux-image-cloud-amd64', modules: MODULES, least: [0, 0] };
/** igb has zero copy since Linux 6.14; Debian's cloud kernel has no such drivers. */
const CARDS = {
  prefix: 'cards-',
  kernelPackage: 'linux-image-amd64',
  modules: [...MODULES, 'igb'],
  least: [6, 14],
};
/** In the parts: which MODULES they were made for. */
const MODULE_LIST = 'module-list';
const SCRIPTS = join(dirname(fileURLToPath(import.meta.url)), 'guest');

runTool('get-guest', (args) => {
  const options = readOptions(args);
  if (options.help) return process.stdout.write(HELP);
  const kind = options.cards ? CARDS : SMALL;
  const healthy = (parts) => isHealthy(parts, kind);
  const parts = cacheEntries(kind.prefix).find(healthy) ?? addToCache((work) => build(work, kind), healthy);
  console.log(JSON.stringify({ kernel: join(parts, 'vmlinuz'), initrd: makeInitrd(parts, options) }));
});

function readOptions(args) {
  let options;
  try {
    ({ values: options } = parseArgs({
      args,
      options: {
        cards: { type: 'boolean' },
        'with-node': { type: 'boolean' },
        add: { type: 'string', multiple: true },
        out: { type: 'string' },
        help: { type: 'boolean' },
      },
    }));
  } catch (error) {
    throw new ToolError(error.message);
  }
  const added = (options.add ?? []).map((text) => {
    const [, source, target] = /^(.+)=\/(.+)$/.exec(text) ?? [];
    if (!source || !existsSync(source))
      throw new ToolError(`--add ${text}: expected EXISTING-FILE-OR-FOLDER=/ABSOLUTE/PATH`);
    return { source, target };
  });
  if (added.length > 0 && !options.out) throw new ToolError('--add needs --out FILE');
  return { help: options.help, cards: options.cards, withNode: options['with-node'], added, out: options.out };
}

// ---- The parts: kernel, modules, busybox -----------------------------------------------------------------------

/** Whether these parts are whole, and were made for the modules of today. */
function isHealthy(parts, { modules }) {
  const isThere = (path) => existsSync(join(parts, path));
  if (!['vmlinuz', 'busybox', 'root/lib/modules', MODULE_LIST].every(isThere)) return false;
  return readFileSync(join(parts, MODULE_LIST), 'utf8') === modules.join('\n');
}

/** Fills `work` with the parts, from the packages of the machine's own release, or of the first suite that has such a kernel. */
function build(work, kind) {
  if (process.arch !== 'x64') throw new ToolError(`this tool knows x86-64 hosts only, not ${process.arch}`);
  const release = machineRelease();
  if (!release) throw new ToolError('the guest is made from Debian packages, and this machine is no Debian');
  const own = new PrivateApt(join(work, 'apt'), release, (suffix) => [`${release}${suffix}`]);
  const complaint = own.update();
  const found = findKernel(work, release, own, kind);
  if (!found) throw new ToolError(complaint || `no Debian suite has ${kind.kernelPackage} ${kind.least.join('.')}`);
  const packages = kernelPackages(found.apt, found.image);
  progress(`fetching ${packages.join(', ')} and busybox-static …`);
  const unpacked = join(work, 'unpacked');
  found.apt.unpack(packages, unpacked);
  own.unpack(['busybox-static'], unpacked);

  const version = found.image.replace('linux-image-', '');
  const parts = join(work, 'parts');
  mkdirSync(join(parts, 'root'), { recursive: true });
  const kernels = ['boot/vmlinuz-', 'usr/lib/modules/'].map((path) => `${path}${version}`);
  renameSync(firstExisting(unpacked, [kernels[0], `${kernels[1]}/vmlinuz`]), join(parts, 'vmlinuz'));
  renameSync(firstExisting(unpacked, ['usr/bin/busybox', 'bin/busybox']), join(parts, 'busybox'));
  takeModules(firstExisting(unpacked, ['usr/lib/modules', 'lib/modules']), version, parts, kind.modules);
  writeFileSync(join(parts, MODULE_LIST), kind.modules.join('\n'));
  return { name: `${kind.prefix}${version}`, folder: parts };
}

/** The first suite that has a kernel new enough: the machine's own release, its backports, later ones. */
function findKernel(work, release, own, { kernelPackage, least }) {
  const later = DEBIAN_RELEASES.slice(DEBIAN_RELEASES.indexOf(release));
  const suites = later.flatMap((name) => (name === 'sid' ? [name] : [name, `${name}-backports`])).slice(1);
  for (const suite of [release, ...suites]) {
    progress(`looking for a kernel in Debian ${suite} …`);
    let apt = own;
    if (suite !== release) {
      apt = new PrivateApt(join(work, suite), release, (suffix) => (suffix === '' ? [suite] : []));
      apt.update();
    }
    const image = apt.depends(kernelPackage).find((name) => name.startsWith('linux-image-'));
    const [, major, minor] = /-(\d+)\.(\d+)/.exec(image ?? '')?.map(Number) ?? [];
    if (major > least[0] || (major === least[0] && minor >= least[1])) return { apt, image };
  }
  return undefined;
}

/** A kernel's packages: one, or, as since Linux 7, kernel and modules apart. */
function kernelPackages(apt, image) {
  const version = image.replace('linux-image-', '');
  const parts = apt
    .depends(image)
    .filter((name) => name === `linux-binary-${version}` || name === `linux-modules-${version}`);
  return [image, ...parts];
}

function firstExisting(folder, paths) {
  const found = paths.map((path) => join(folder, path)).find((path) => existsSync(path));
  if (!found) throw new ToolError(`the packages contain none of ${paths.join(', ')}`);
  return found;
}

/** Takes MODULES and what they depend on, uncompressed, and writes modules.dep for busybox's modprobe. */
function takeModules(modules, version, parts, names) {
  const busybox = join(parts, 'busybox');
  const source = join(modules, version);
  const target = join(parts, 'root/lib/modules', version);
  const files = new Map();
  for (const path of readdirSync(source, { recursive: true })) {
    const name = /([^/]+)\.ko(\.xz)?$/.exec(path)?.[1];
    if (name) files.set(moduleName(name), path);
  }
  const wanted = [...names];
  for (const name of wanted) {
    const path = files.get(name);
    if (!path) continue; // built in, or part of another module in this version
    const isCompressed = path.endsWith('.xz');
    const from = join(source, path);
    const data = isCompressed ? mustRun(busybox, ['unxz', '-c', from], { encoding: 'buffer' }) : readFileSync(from);
    const to = join(target, path.replace(/\.xz$/, ''));
    mkdirSync(dirname(to), { recursive: true });
    writeFileSync(to, data);
    wanted.push(...dependencies(data).filter((dependency) => !wanted.includes(dependency)));
  }
  mustRun(busybox, ['depmod', '-b', join(parts, 'root'), version]);
}

/** The kernel's names of modules have underscores, their files either. */
function moduleName(name) {
  return name.replaceAll('-', '_');
}

/** The section .modinfo of a module consists of strings that end in NUL; one is “depends=a,b”. */
function dependencies(module) {
  const text = /\0depends=([^\0]*)\0/.exec(module.toString('latin1'))?.[1] ?? '';
  return text.split(',').filter(Boolean).map(moduleName);
}

// ---- The initrd: up to three archives in a row -----------------------------------------------------------------

function makeInitrd(parts, { withNode, added, out }) {
  const chunks = baseArchive(parts);
  const hash = createHash('sha256');
  for (const chunk of chunks) hash.update(chunk);
  const nodeFiles = withNode ? findNodeFiles() : [];
  for (const { source } of nodeFiles) hash.update(`${source} ${statSync(source).size} ${statSync(source).mtimeMs}\n`);

  const file = out ? resolve(out) : join(parts, `initrd-${hash.digest('hex').slice(0, 16)}.cpio`);
  if (!out && existsSync(file)) return file;
  if (withNode) chunks.push(...archiveOf(nodeFiles));
  if (added.length > 0) chunks.push(...archiveOf(added));
  writeWhole(file, chunks);
  return file;
}

function baseArchive(parts) {
  const archive = new CpioWriter();
  for (const name of ['proc', 'sys', 'dev', 'tmp', 'root']) archive.folder(name);
  archive.file('init', readFileSync(join(SCRIPTS, 'init')), 0o755);
  archive.file('guest/console', readFileSync(join(SCRIPTS, 'console')));
  const busybox = join(parts, 'busybox');
  archive.file('bin/busybox', readFileSync(busybox), 0o755);
  for (const applet of mustRun(busybox, ['--list']).split('\n').filter(Boolean)) {
    if (applet !== 'busybox') archive.symlink(`bin/${applet}`, 'busybox');
  }
  archive.symlink('sbin', 'bin'); // where the kernel looks for modprobe
  archive.copy(join(parts, 'root/lib'), 'lib');
  return archive.end();
}

function archiveOf(files) {
  const archive = new CpioWriter();
  for (const { source, target } of files) archive.copy(source, target);
  return archive.end();
}

/** The running Node and the shared libraries that it needs, at their places in the guest. */
function findNodeFiles() {
  const node = realpathSync(process.execPath);
  const libraries = mustRun('ldd', [node])
    .split('\n')
    .flatMap((line) => /(?:=> |^\s*)(\/\S+) \(0x/.exec(line)?.[1] ?? []);
  const files = libraries.map((library) => ({ source: realpathSync(library), target: library.slice(1) }));
  return [{ source: node, target: 'usr/bin/node' }, ...files];
}

/** Writes beside the file first, so that whoever reads it never sees a part. */
function writeWhole(file, chunks) {
  const unfinished = join(dirname(file), `.${basename(file)}.${process.pid}`);
  const descriptor = openSync(unfinished, 'w');
  for (const chunk of chunks) {
    for (let done = 0; done < chunk.length; ) done += writeSync(descriptor, chunk, done);
  }
  closeSync(descriptor);
  renameSync(unfinished, file);
}

// Virtual machines for the tests: images with ptnet in them, and starting one with the arguments of `ptnet vm`.

import { execFile } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { ptnet, root } from './ptnet.ts';
import { type GuestImage, QemuGuest, type QemuOptions } from './qemu.ts';

const execute = promisify(execFile);

/** What `ptnet pkt-gen` needs of this checkout, and where it is in the guest. */
const APP = ['dist/src', 'package.json', 'node_modules/commander', 'node_modules/koffi', 'node_modules/@koromix'];

/** What of the installed packages the daemon needs besides. */
function daemonPackages(): string[] {
  const { packages } = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8')) as {
    packages: Record<string, { dev?: boolean }>;
  };
  return Object.keys(packages).filter((path) => path.startsWith('node_modules/') && packages[path]?.dev !== true);
}

/**
 * An image with Node and ptnet: `ptnet`, and what else is in tests/e2e/guest, is a command in it.
 * @param folder where the initrd is put @param daemon whether a daemon is to run in it, on network cards
 */
export async function imageWithPtnet(folder: string, daemon = false): Promise<GuestImage> {
  const app = daemon ? [...new Set([...APP, ...daemonPackages()])] : APP;
  const add = app.filter((path) => existsSync(join(root, path))).map((path) => `${join(root, path)}=/app/${path}`);
  const commands = join(root, 'tests/e2e/guest');
  add.push(...readdirSync(commands).map((name) => `${join(commands, name)}=/bin/${name}`));
  const args = [
    ...(daemon ? ['--cards'] : []),
    '--with-node',
    ...add.flatMap((a) => ['--add', a]),
    '--out',
    join(folder, 'initrd.cpio'),
  ];
  const [qemu, guest] = await Promise.all([
    execute(join(root, 'tools/get-qemu')),
    execute(join(root, 'tools/get-guest'), args),
  ]);
  const { kernel, initrd } = JSON.parse(guest.stdout) as { kernel: string; initrd: string };
  return { qemu: qemu.stdout.trim(), kernel, initrd };
}

/** Starts a machine with its ports, as `ptnet vm NAME` says. @param flags of ptnet vm */
export async function startMachine(
  runDir: string,
  vm: string,
  image: GuestImage,
  flags: readonly string[] = [],
  options: Partial<QemuOptions> = {},
): Promise<QemuGuest> {
  const { code, stdout, stderr } = await ptnet(['vm', vm, '--run-dir', runDir, '--json', ...flags]);
  if (code !== 0) throw new Error(`ptnet vm ${vm}: ${stderr}`);
  return QemuGuest.start({ ...image, ...options, ptnetArgs: JSON.parse(stdout) as string[] });
}

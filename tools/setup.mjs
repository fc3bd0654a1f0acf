#!/usr/bin/env node
/**
 * Set-up shared by ./start, ./test and ./ptnet: checks Node, installs the packages of package-lock.json if they are not
 * there, and builds. Plain JavaScript, because it runs before anything is compiled. All output goes to stderr.
 *
 * Usage: node tools/setup.mjs [--no-build]
 * Entry points: installPackages, build (used by run-tests.mjs).
 */
import { spawnSync } from 'node:child_process';
import { existsSync, lstatSync, readFileSync, realpathSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** The checkout. */
export const root = dirname(dirname(fileURLToPath(import.meta.url)));

/** Oldest Node that runs the project: `engines` of package.json, compared as numbers. */
const oldest = [20, 19];

function checkNode() {
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number);
  if (major > oldest[0] || (major === oldest[0] && minor >= oldest[1])) return;
  throw new Error(`Node ${process.versions.node} is too old: ptnet needs Node ${oldest.join('.')} or newer`);
}

/** Why the installed packages are not those of package-lock.json, or undefined if they are. */
function missing() {
  const hidden = join(root, 'node_modules/.package-lock.json'); // npm writes it last, with what it installed
  if (!existsSync(hidden)) return 'node_modules is missing';
  const installed = JSON.parse(readFileSync(hidden, 'utf8')).packages;
  const wanted = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8')).packages;
  for (const [path, { version, optional }] of Object.entries(wanted)) {
    if (path === '' || (optional && installed[path] === undefined)) continue;
    if (installed[path]?.version !== version) return `${path} ${version} is missing`;
    if (!existsSync(join(root, path, 'package.json'))) return `${path} is missing`;
  }
  return undefined;
}

function run(command, args) {
  const { status, signal, error } = spawnSync(command, args, { cwd: root, stdio: ['ignore', 2, 2] });
  if (status !== 0) {
    const why = error?.message ?? (signal ? `killed by ${signal}` : `exit status ${status}`);
    throw new Error(`"${command} ${args.join(' ')}" failed: ${why}`);
  }
}

/** Runs `npm ci` if the packages of package-lock.json are not all there. No install script is needed, so none runs. */
export function installPackages() {
  checkNode();
  const why = missing();
  if (why === undefined) return;
  const modules = join(root, 'node_modules');
  if (existsSync(modules) && lstatSync(modules).isSymbolicLink()) {
    throw new Error(`${why}, and node_modules is a link: run "npm ci" in ${dirname(realpathSync(modules))}`);
  }
  process.stderr.write(`${why}: running "npm ci"\n`);
  run('npm', ['ci', '--ignore-scripts', '--no-audit', '--no-fund']);
}

/** Compiles to dist/. */
export function build() {
  run('tools/build', []);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    installPackages();
    if (!process.argv.includes('--no-build')) build();
  } catch (e) {
    process.stderr.write(`set-up: ${e.message}\n`);
    process.exit(1);
  }
}

// What the tools share: messages, running commands, and a cache whose entries appear whole or not at all.

import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync, statSync } from 'node:fs';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';

const STALE_BUILD_MS = 24 * 3600 * 1000;

/** A failure that the user can act on: its message is printed as one line, without a stack. */
export class ToolError extends Error {}

/** Runs a tool's main function; stdout is kept for the result, so everything else goes to stderr. */
export function runTool(name, main) {
  try {
    main(process.argv.slice(2));
  } catch (error) {
    if (!(error instanceof ToolError)) throw error;
    console.error(`${name}: ${error.message}`);
    process.exitCode = 1;
  }
}

export function progress(text) {
  console.error(text);
}

/**
 * Runs a command to its end. Returns `{ok, stdout, stderr, why}`; `why` is one line that says how it failed.
 * Nothing is thrown: most callers expect that some commands fail.
 */
export function run(command, args, options = {}) {
  const result = spawnSync(command, args, {
    encoding: 'utf8',
    maxBuffer: 64 * 1024 * 1024,
    timeout: 600_000,
    stdio: ['ignore', 'pipe', 'pipe'],
    ...options,
  });
  const stdout = result.stdout ?? '';
  const stderr = String(result.stderr ?? '');
  const ok = result.status === 0;
  return { ok, stdout, stderr, why: ok ? '' : failureLine(command, result, stderr) };
}

/** Like `run`, but a failure is a ToolError; returns stdout. */
export function mustRun(command, args, options = {}) {
  const result = run(command, args, options);
  if (!result.ok) throw new ToolError(result.why);
  return result.stdout;
}

function failureLine(command, result, stderr) {
  if (result.error?.code === 'ENOENT') return `${command}: command not found`;
  if (result.error) return `${command}: ${result.error.message}`;
  const lines = stderr.split('\n').filter((line) => line.trim() !== '');
  const errorLine =
    lines.find((line) => /^(E|Err):/.test(line)) ?? lines.at(-1) ?? `ended with ${result.status ?? result.signal}`;
  return `${command}: ${errorLine}`;
}

/** The folder that holds everything the tools make (see README.md). */
export function cacheFolder() {
  const folder = process.env.PTNET_CACHE || join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'ptnet');
  mkdirSync(folder, { recursive: true });
  return resolve(folder);
}

/** Entries of the cache whose name starts with `prefix`, newest version first. */
export function cacheEntries(prefix) {
  const folder = cacheFolder();
  return readdirSync(folder)
    .filter((name) => name.startsWith(prefix))
    .sort((a, b) => b.localeCompare(a, 'en', { numeric: true }))
    .map((name) => join(folder, name));
}

/**
 * Builds a cache entry: `build(work)` fills the folder `work` and returns `{name, folder}`, the entry's name and the part of `work`
 * that becomes it. Two builders at once both build, and the second one takes the entry of the first: a rename is
 * atomic, so nobody sees half an entry. `healthy(path)` says whether an entry that is already there can be used.
 */
export function addToCache(build, healthy) {
  const cache = cacheFolder();
  removeStaleBuilds(cache);
  const work = mkdtempSync(join(cache, '.build-'));
  const removeWork = () => rmSync(work, { recursive: true, force: true });
  try {
    const { name, folder } = build(work);
    if (!healthy(folder)) throw new ToolError(`what was downloaded does not work (${name})`);
    const entry = join(cache, name);
    if (existsSync(entry) && !healthy(entry)) renameSync(entry, join(work, 'broken'));
    try {
      renameSync(folder, entry);
    } catch (error) {
      if (!healthy(entry)) throw error;
    }
    return entry;
  } finally {
    removeWork();
  }
}

/** Builds that were killed leave their folder behind; a day later it belongs to nobody. */
function removeStaleBuilds(cache) {
  for (const name of readdirSync(cache)) {
    const path = join(cache, name);
    if (
      name.startsWith('.build-') &&
      Date.now() - statSync(path, { throwIfNoEntry: false })?.mtimeMs > STALE_BUILD_MS
    ) {
      rmSync(path, { recursive: true, force: true });
    }
  }
}

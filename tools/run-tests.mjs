/**
 * What ./test runs: set-up, build, format, lint, docs, then the tests of each folder of tests/. Plain JavaScript, because
 * it runs before anything is compiled.
 *
 * Usage: ./test [--long] [--list] [part | folder | file …]
 *   A part is one of those listed by --list; `unit/cli` is one folder of a part, `tests/unit/cli/config.test.ts` one file.
 *   --long sets PTNET_LONG=1, by which tests run more or longer; it also holds the skips to tests/allowed-skips, as does
 *   CI=true: any other skip fails the run.
 *
 * A part that fails does not stop the others, except build. The last line is `N passed, N failed, N skipped`.
 */
import { spawn } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { build, installPackages, root } from './setup.mjs';

/** Folders of tests/, in the order they run, and how many of their files run at once. */
const testFolders = [
  ['golden', 2],
  ['unit', 2],
  ['props', 2],
  ['fuzz', 2],
  // netmap's own scenarios, by their numbers.
  ['netmap-utils', 2],
  // Whole daemons, guests and machines: they measure nothing, but they wait for each other.
  ['holds', 1],
  ['e2e', 1],
  // Network stacks in namespaces: root.
  ['net', 1],
  ['stack', 1],
  ['nic', 1],
];
/** Longest a part may take before it is ended and counts as failed, minutes. */
const partMinutes = { short: 12, long: 60 };

const long = process.argv.includes('--long') || process.env.PTNET_LONG === '1';
const strictSkips = long || process.env.CI === 'true';
const names = process.argv.slice(2).filter((a) => !a.startsWith('--'));
const unknownFlags = process.argv.slice(2).filter((a) => a.startsWith('--') && !['--long', '--list'].includes(a));

const total = { passed: 0, failed: 0, skipped: 0 };
const failures = [];
const seconds = [];
/** Where the reporter leaves what it counted. */
const result = join(root, 'dist/test-result.json');

/** Runs a command in the checkout; resolves to its exit status (124 if it took too long). It gets no stdin. */
function run(command, args, env = {}) {
  const limit = (long ? partMinutes.long : partMinutes.short) * 60_000;
  return new Promise((resolve) => {
    // A process group of its own, so that a time-out ends what the tests started too.
    const child = spawn(command, args, {
      cwd: root,
      stdio: ['ignore', 'inherit', 'inherit'],
      env: { ...process.env, ...(long ? { PTNET_LONG: '1' } : {}), ...env },
      detached: true,
    });
    let expired = false;
    const kill = (signal) => {
      try {
        process.kill(-child.pid, signal);
      } catch {
        // It has ended.
      }
    };
    const timer = setTimeout(() => {
      expired = true;
      process.stdout.write(`took more than ${limit / 60_000} minutes: ended\n`);
      kill('SIGKILL');
    }, limit);
    const interrupted = () => {
      kill('SIGTERM');
      process.exit(130);
    };
    process.once('SIGINT', interrupted);
    process.once('SIGTERM', interrupted);
    const done = (status) => {
      clearTimeout(timer);
      process.off('SIGINT', interrupted);
      process.off('SIGTERM', interrupted);
      resolve(expired ? 124 : status);
    };
    child.on('error', (e) => {
      process.stdout.write(`${command}: ${e.message}\n`);
      done(127);
    });
    child.on('exit', (code) => done(code ?? 1));
  });
}

/** Runs a checker; it counts as one test. */
async function check(command, args) {
  const ok = (await run(command, args)) === 0;
  total[ok ? 'passed' : 'failed'] += 1;
  return ok;
}

/** Compiled test files under a folder (or the file itself) of the source tree, sorted. */
function testFiles(path) {
  if (path === undefined) return [];
  if (statSync(path).isFile()) return [path];
  const entries = readdirSync(path, { recursive: true }).map(String);
  return entries
    .filter((f) => f.endsWith('.test.ts'))
    .toSorted()
    .map((f) => join(path, f));
}

function allowedSkips() {
  const lines = readFileSync(join(root, 'tests/allowed-skips'), 'utf8').split('\n');
  return new Set(lines.map((l) => l.trim()).filter((l) => l !== '' && !l.startsWith('#')));
}

/** Runs test files; every test in them counts. */
async function tests(files, concurrency) {
  if (files.length === 0) {
    process.stdout.write('no tests found\n');
    total.failed += 1;
    return false;
  }
  rmSync(result, { force: true });
  const compiled = files.map((f) => join('dist', f.replace(/\.ts$/, '.js')));
  const status = await run(
    process.execPath,
    [
      '--test',
      `--test-concurrency=${Math.min(concurrency, availableParallelism())}`,
      `--test-reporter=${join(root, 'tools/test-reporter.mjs')}`,
      '--test-reporter-destination=stdout',
      ...compiled,
    ],
    { PTNET_TEST_RESULT: result },
  );
  if (!existsSync(result)) {
    process.stdout.write(`no result: node --test ended with status ${status}\n`);
    total.failed += 1;
    return false;
  }
  const { passed, failed, skipped } = JSON.parse(readFileSync(result, 'utf8'));
  const allowed = allowedSkips();
  let refused = 0;
  for (const { file, name, reason } of skipped) {
    if (reason === undefined) {
      process.stdout.write(`${file}: "${name}" is skipped without a reason\n`);
      refused += 1;
    } else if (strictSkips && !allowed.has(`${file}: ${name}`)) {
      process.stdout.write(
        `${file}: "${name}" is skipped (${reason}), and "${file}: ${name}" is not in tests/allowed-skips\n`,
      );
      refused += 1;
    }
  }
  total.passed += passed;
  total.failed += failed + refused;
  total.skipped += skipped.length - refused;
  if (status !== 0 && failed === 0) {
    process.stdout.write(`node --test ended with status ${status}, though no test failed\n`);
    total.failed += 1;
  }
  return status === 0 && failed === 0 && refused === 0;
}

/** A part, folder or file of the tests as a path from the checkout, or undefined if there is none. */
function testPath(name) {
  return [name, join('tests', name)].find(
    (path) =>
      path.startsWith('tests/') && existsSync(path) && (statSync(path).isDirectory() || path.endsWith('.test.ts')),
  );
}

/** Everything ./test knows to run, by name. */
const parts = new Map([
  ['format', () => check('node_modules/.bin/biome', ['format'])],
  ['lint', () => check('node_modules/.bin/oxlint', ['--deny-warnings'])],
  ['docs', () => check(process.execPath, ['tools/check-docs.mjs'])],
  ['troubleshooting', () => check(process.execPath, ['tools/check-troubleshooting.mjs'])],
  ...testFolders.map(([folder, concurrency]) => [folder, () => tests(testFiles(testPath(folder)), concurrency)]),
]);

/** The parts, folders and files asked for, as [name, function]. */
function selection() {
  if (names.length === 0) return [...parts];
  // Set-up and build always run.
  return names
    .filter((name) => name !== 'set-up' && name !== 'build')
    .map((name) => {
      const part = parts.get(name);
      if (part !== undefined) return [name, part];
      const path = testPath(name);
      if (path === undefined) {
        throw new Error(`no part, folder or file "${name}"; parts: set-up build ${[...parts.keys()].join(' ')}`);
      }
      const concurrency = new Map(testFolders).get(path.split('/')[1]) ?? 1;
      return [name, () => tests(testFiles(path), concurrency)];
    });
}

async function runPart(name, body) {
  const start = performance.now();
  process.stdout.write(`== ${name}\n`);
  let ok = false;
  try {
    ok = await body();
  } catch (e) {
    process.stdout.write(`${e.message}\n`);
    total.failed += 1;
  }
  seconds.push([name, (performance.now() - start) / 1000, ok]);
  if (!ok) failures.push(name);
  return ok;
}

process.chdir(root);
try {
  if (unknownFlags.length > 0)
    throw new Error(`unknown option ${unknownFlags[0]}; usage: ./test [--long] [--list] [part …]`);
  if (process.argv.includes('--list')) {
    process.stdout.write(`${['set-up', 'build', ...parts.keys()].join('\n')}\n`);
    process.exit(0);
  }
  const chosen = selection();
  const ready =
    (await runPart('set-up', () => {
      installPackages();
      return true;
    })) &&
    (await runPart('build', () => {
      build();
      total.passed += 1;
      return true;
    }));
  if (ready) for (const [name, body] of chosen) await runPart(name, body);
  process.stdout.write('\nseconds\n');
  for (const [name, s, ok] of seconds) {
    process.stdout.write(`  ${name.padEnd(24)}${s.toFixed(1).padStart(8)}${ok ? '' : '  FAILED'}\n`);
  }
  if (failures.length > 0) process.stdout.write(`failed: ${failures.join(' ')}\n`);
  process.stdout.write(`${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped\n`);
  process.exitCode = total.failed === 0 && failures.length === 0 ? 0 : 1;
} catch (e) {
  process.stderr.write(`./test: ${e.message}\n`);
  process.exitCode = 2;
}

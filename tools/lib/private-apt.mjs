// An apt of our own: it reads the machine's configured sources, but keeps its lists, packages and state in a folder
// of ours, so that another Debian suite can be looked into without root and without any change to the system.

import { existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { ToolError, mustRun, run } from './tool.mjs';

/** Debian's releases in their order; a private apt may look into the machine's own and later ones. */
export const DEBIAN_RELEASES = ['bookworm', 'trixie', 'forky', 'sid'];

/** The machine's Debian release, or null if this is no Debian (or one that is not in the list). */
export function machineRelease() {
  if (!existsSync('/etc/os-release')) return null;
  const fields = readFileSync('/etc/os-release', 'utf8');
  if (!/^ID="?debian"?$/m.test(fields)) return null;
  const codename = /^VERSION_CODENAME="?([a-z]+)"?$/m.exec(fields)?.[1] ?? 'sid';
  return DEBIAN_RELEASES.includes(codename) ? codename : null;
}

export class PrivateApt {
  #configFile;

  /**
   * @param folder an empty or new folder for apt's state
   * @param release the machine's own release, whose sources are the pattern
   * @param suitesFor what replaces the machine's suites: receives the suffix of a suite ('' or '-security' …), returns a list of suites
   */
  constructor(folder, release, suitesFor) {
    const sources = join(folder, 'sources');
    mkdirSync(join(folder, 'state/lists/partial'), { recursive: true });
    mkdirSync(join(folder, 'cache/archives/partial'), { recursive: true });
    mkdirSync(sources, { recursive: true });
    writeFileSync(join(folder, 'state/status'), '');
    if (writeSources(sources, release, suitesFor) === 0) {
      throw new ToolError(`apt has no source with Debian's suite “${release}” and component “main”`);
    }
    this.#configFile = join(folder, 'apt.conf');
    // A file given by -c is read after the system's configuration (proxies and so on stay), so it can also clear hooks that
    // would act on the system's own cache. The empty status file makes apt resolve every dependency, not only what this machine lacks.
    writeFileSync(
      this.#configFile,
      `#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Pre-Install-Pkgs;
#clear DPkg::Post-Invoke;
#clear APT::Architectures;
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
Dir::State "${join(folder, 'state')}";
Dir::State::status "${join(folder, 'state/status')}";
Dir::Cache "${join(folder, 'cache')}";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "${sources}";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
`,
    );
    this.folder = folder;
  }

  /**
   * Fetches the lists. Returns apt's first complaint, or '': some lists may be missing without harm (a suite that one of the
   * sources does not have), so whether that matters is seen when the package is looked for.
   */
  update() {
    const { stderr, why } = run('apt-get', ['-c', this.#configFile, '-q', 'update']);
    return /^[EW]: (.*)$/m.exec(stderr)?.[1] ?? why;
  }

  /** All versions of a package as `{version, suite}`. */
  versions(packageName) {
    return mustRun('apt-cache', ['-c', this.#configFile, 'madison', packageName])
      .split('\n')
      .map((line) => line.split('|').map((field) => field.trim()))
      .filter((fields) => fields.length === 3 && fields[2].endsWith(' Packages'))
      .map((fields) => ({ version: fields[1], suite: fields[2].split(' ')[1].split('/')[0] }));
  }

  /** The packages that a package depends on directly; none if the package does not exist. */
  depends(packageName) {
    return run('apt-cache', ['-c', this.#configFile, 'depends', '--no-recommends', '--no-suggests', packageName])
      .stdout.split('\n')
      .flatMap((line) => /^\s*Depends: (\S+)$/.exec(line)?.[1] ?? []);
  }

  /** Names of a package and all it needs, as apt would install them from `suite` on a machine that has nothing. */
  closure(packageName, suite) {
    const args = ['-c', this.#configFile, '-q', '--simulate', '-t', suite, 'install', packageName];
    return mustRun('apt-get', args)
      .split('\n')
      .flatMap((line) => /^Inst (\S+) \((\S+)/.exec(line)?.slice(1, 3).join('=') ?? []);
  }

  /** Downloads packages (name or name=version) and unpacks them into `root`. apt checks signatures and hashes. */
  unpack(packages, root) {
    const debs = join(this.folder, 'debs');
    mkdirSync(debs, { recursive: true });
    mustRun('apt-get', ['-c', this.#configFile, '-q', 'download', ...packages], { cwd: debs });
    mkdirSync(root, { recursive: true });
    const files = readdirSync(debs).filter((name) => name.endsWith('.deb'));
    for (const file of files) mustRun('dpkg-deb', ['-x', join(debs, file), root]);
  }
}

/** Copies the machine's Debian sources into `folder` with other suites; returns how many there were. */
function writeSources(folder, release, suitesFor) {
  const replace = (suite) => {
    if (suite === release) return suitesFor('');
    return suite.startsWith(`${release}-`) ? suitesFor(suite.slice(release.length)) : [];
  };
  let count = 0;
  for (const file of sourceFiles()) {
    const text = readFileSync(file, 'utf8');
    const [kept, extension] = file.endsWith('.sources')
      ? [text.split(/\n\s*\n/).flatMap((stanza) => rewriteStanza(stanza, replace)), 'sources']
      : [text.split('\n').flatMap((line) => rewriteLine(line, replace)), 'list'];
    if (kept.length === 0) continue;
    writeFileSync(join(folder, `${count}.${extension}`), `${kept.join('\n\n')}\n`);
    count += kept.length;
  }
  return count;
}

function sourceFiles() {
  const parts = '/etc/apt/sources.list.d';
  const files = existsSync(parts) ? readdirSync(parts).map((name) => join(parts, name)) : [];
  return ['/etc/apt/sources.list', ...files].filter((file) => /\.(list|sources)$/.test(file) && existsSync(file));
}

/** deb822: fields, of which only `Suites` changes. */
function rewriteStanza(stanza, replace) {
  const text = stanza
    .split('\n')
    .filter((line) => !line.startsWith('#') && line.trim() !== '')
    .join('\n');
  const field = (name) => new RegExp(`^${name}:(.*)$`, 'im').exec(text)?.[1].trim().split(/\s+/) ?? [];
  const suites = field('Suites').flatMap(replace);
  if (suites.length === 0 || !field('Types').includes('deb') || !field('Components').includes('main')) return [];
  if (field('Enabled')[0]?.toLowerCase() === 'no') return [];
  return [text.replace(/^Types:.*$/im, 'Types: deb').replace(/^Suites:.*$/im, `Suites: ${suites.join(' ')}`)];
}

/** One line: deb [options] uri suite component… */
function rewriteLine(line, replace) {
  const match = /^\s*deb\s+(\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+(.*)$/.exec(line);
  if (!match || !match[4].split(/\s+/).includes('main')) return [];
  const [, options = '', uri, suite, components] = match;
  return replace(suite).map((other) => `deb ${options}${uri} ${other} ${components}`);
}

/**
 * What a wrong configuration is told: which file, line and column, which path in the document, what is wrong there and
 * what is allowed. Entry points: ConfigError, explainIssues (schema), explainSyntax (YAML).
 */
import { constants } from 'node:os';
import { type Document, isCollection, isMap, isNode, isScalar, isSeq, type LineCounter } from 'yaml';
import type { z } from 'zod';

/** A configuration that cannot be used. `message` has one line for each fault. */
export class ConfigError extends Error {
  readonly errno: number = constants.errno.EINVAL;
  readonly code: string = 'EINVAL';
  /** One text for each fault: "where: what". */
  readonly faults: readonly string[];
  constructor(faults: readonly string[]) {
    super(faults.join('\n'));
    this.name = 'ConfigError';
    this.faults = faults;
  }
}

type Path = readonly PropertyKey[];

/** A document that was parsed, with what is needed to find places in it. */
export interface Source {
  readonly file: string;
  readonly doc: Document;
  readonly lines: LineCounter;
}

/** `vms.fw.ports[0]`, or "the document" for the top. */
function pathText(path: Path): string {
  let text = '';
  for (const step of path) text += typeof step === 'number' ? `[${step}]` : `${text === '' ? '' : '.'}${String(step)}`;
  return text === '' ? 'the document' : text;
}

/** The key and value at a path, as far as they exist. Keys are compared as text: `0:` is a number to YAML. */
function find(doc: Document, path: Path): { readonly key?: unknown; readonly value: unknown } | undefined {
  let found: { key?: unknown; value: unknown } = { value: doc.contents };
  for (const step of path) {
    const { value } = found;
    if (isMap(value)) {
      const pair = value.items.find(({ key }) => isScalar(key) && String(key.value) === String(step));
      if (pair === undefined) return undefined;
      found = pair;
    } else if (isSeq(value) && typeof step === 'number' && step < value.items.length) {
      found = { value: value.items[step] };
    } else return undefined;
  }
  return found;
}

/** Where a value stands, or the nearest thing round it: "file:line:column". Mappings and lists stand at their key. */
function place({ file, doc, lines }: Source, path: Path): string {
  for (let steps = path.length; steps >= 0; steps--) {
    const found = find(doc, path.slice(0, steps));
    if (found === undefined) continue;
    const node = isNode(found.key) && !isScalar(found.value) ? found.key : found.value;
    if (!isNode(node) || node.range == null) continue;
    const { line, col } = lines.linePos(node.range[0]);
    return `${file}:${line}:${col}`;
  }
  return file;
}

/** Where a key stands. */
function keyPlace(source: Source, path: Path): string {
  const key = find(source.doc, path)?.key;
  if (!isNode(key) || key.range == null) return place(source, path);
  const { line, col } = source.lines.linePos(key.range[0]);
  return `${source.file}:${line}:${col}`;
}

/** The value found at a path, short. */
function valueText({ doc }: Source, path: Path): string {
  const node = find(doc, path)?.value;
  if (node === undefined) return 'is missing';
  if (isCollection(node)) return `is ${isMap(node) ? 'a mapping' : 'a list'}`;
  const value: unknown = isScalar(node) ? node.value : node;
  return `is ${JSON.stringify(value) ?? String(value)}`;
}

/** Faults found by the schema, in the order of the document's paths. Each issue's message says what is allowed. */
export function explainIssues(source: Source, issues: readonly z.core.$ZodIssue[]): ConfigError {
  const faults = issues.flatMap((issue) => {
    const { code, path, message } = issue;
    if (code === 'unrecognized_keys') {
      return issue.keys.map((key) => {
        const at = [...path, key];
        return `${keyPlace(source, at)}: ${pathText(at)}: unknown key; ${message}`;
      });
    }
    if (code === 'invalid_key') {
      return `${keyPlace(source, path)}: ${pathText(path)}: must be ${issue.issues[0]?.message ?? message}`;
    }
    const where = `${place(source, path)}: ${pathText(path)}`;
    return code === 'custom' ? `${where}: ${message}` : `${where}: ${valueText(source, path)}, must be ${message}`;
  });
  return new ConfigError(faults.toSorted(byPlace));
}

/** Orders faults by the line and column they begin with. */
function byPlace(a: string, b: string): number {
  const [lineA = 0, colA = 0] = a.split(':').slice(1, 3).map(Number);
  const [lineB = 0, colB = 0] = b.split(':').slice(1, 3).map(Number);
  return lineA - lineB || colA - colB;
}

/** Faults of the YAML itself. */
export function explainSyntax({ file, doc, lines }: Source): ConfigError {
  return new ConfigError(
    doc.errors.map((e) => {
      const { line, col } = lines.linePos(e.pos[0]);
      return `${file}:${line}:${col}: ${e.message.split('\n')[0]?.replace(/ at line \d+, column \d+:?$/, '')}`;
    }),
  );
}

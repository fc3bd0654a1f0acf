/** What is told of interfaces that come and go, in a network namespace of the test's own. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import { nicSkip } from './nic-lab.ts';

const OS = JSON.stringify(new URL('../../src/os/index.js', import.meta.url).href);

/** What a reader is told who does not read while so many interfaces come and go that the kernel forgets some of it. */
const SCRIPT = `
import { execFileSync } from 'node:child_process';
const { interfaceIndex, watchLinks } = await import(${OS});
const ip = (...lines) => execFileSync('ip', ['-batch', '-'], { input: lines.join('\\n') });
const many = Array.from({ length: 400 }, (_, i) => 'v' + i);
ip('link add stays type veth peer name other', 'link add goes type veth peer name with');
const [stays, goes] = [interfaceIndex('stays'), interfaceIndex('goes')];
const told = [];
const watching = watchLinks((change) => told.push(change));
ip(...many.flatMap((v) => ['link add ' + v + ' type veth peer name p' + v, 'link del ' + v]), 'link del goes');
ip('link set stays mtu 1400', 'link set stays up', 'link set other up');
const last = (ifindex) => told.findLast((change) => change.ifindex === ifindex);
for (let i = 0; i < 6000 && !(last(stays)?.running && last(goes)?.gone); i++) {
  await new Promise((resolve) => setTimeout(resolve, 10));
}
console.log(JSON.stringify({ lost: told.length < 4 * many.length, stays: last(stays), goes: last(goes), at: [stays, goes] }));
watching.close();
`;

test('a reader of interfaces who missed something learns what is there and what is gone', { skip: nicSkip() }, () => {
  const node = [process.execPath, '--input-type=module', '-e', SCRIPT];
  const { stdout, stderr } = spawnSync('unshare', ['-n', ...node], { encoding: 'utf8' });
  assert.equal(stderr, '');
  const { lost, stays, goes, at } = JSON.parse(stdout);
  assert.equal(lost, true, 'the kernel kept everything: the test shows nothing');
  assert.deepEqual(stays, { ifindex: at[0], gone: false, running: true, mtu: 1400 });
  assert.deepEqual(goes, { ifindex: at[1], gone: true, running: false, mtu: 0 });
});

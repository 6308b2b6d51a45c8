package browsertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/lockfabric/lockfabric/fabric"
)

func acquire(t *testing.T, m *fabric.Manager, key string, opts ...fabric.AcquireOption) *fabric.Lock {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	l, err := m.Acquire(ctx, key, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func free(t *testing.T, l *fabric.Lock) {
	t.Helper()
	if err := l.Release(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// What happens shows by the stream alone: the page asks for nothing meanwhile. How soon
// is logged, and bounded generously.
func TestALockComesMovesAndGoes(t *testing.T) {
	p := open(t, false)
	m := p.manager()
	const asked = `performance.getEntriesByType('resource').filter(r => r.name.includes('/api/')).length`
	before := eval[int](p, asked)
	soon := func(what string, begun time.Time) {
		t.Helper()
		took := time.Since(begun)
		t.Logf("%s shows after %v", what, took)
		if took > 10*time.Second {
			t.Errorf("%s shows after %v", what, took)
		}
	}
	begun := time.Now()
	first := acquire(t, m, "jobs/report", fabric.WithOwner("the first one"))
	p.shows("the hold", ".row .by", "the first one")
	soon("a hold", begun)
	second := make(chan *fabric.Lock, 1)
	go func() {
		l, err := m.Acquire(p.ctx, "jobs/report", fabric.WithOwner("the second one"))
		if err != nil {
			t.Error(err)
		}
		second <- l
	}()
	p.shows("the waiter", ".row .waiting", "1")
	begun = time.Now()
	free(t, first)
	p.shows("the next holder", ".row .by", "the second one")
	soon("a move", begun)
	l := <-second
	if l == nil {
		return
	}
	begun = time.Now()
	free(t, l)
	p.until("that nothing is in use", `document.querySelectorAll('#space .row').length === 0 && !document.querySelector('#empty').hidden`)
	soon("a release", begun)
	if after := eval[int](p, asked); after != before {
		t.Errorf("the page asked %d times", after-before)
	}
	p.quiet()
}

func TestFiveThousandNamesStayUsable(t *testing.T) {
	const names = 5000
	p := open(t, false)
	m := p.manager()
	var wg sync.WaitGroup
	for w := range 50 {
		wg.Go(func() {
			for i := w; i < names; i += 50 {
				if _, err := m.Acquire(p.ctx, fmt.Sprintf("shop-%d/orders/%04d", i%7, i)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	p.until("all names", `document.querySelector('#counts').textContent === '5000 names'`)
	// Only what can be seen is there.
	if rows := eval[int](p, `document.querySelectorAll('.row').length`); rows > 100 {
		t.Errorf("%d rows exist", rows)
	}
	p.run(chromedp.KeyEvent(kb.End))
	p.shows("the last name, by a key", ".row.current .name", "4997")
	p.run(chromedp.KeyEvent("/"), chromedp.KeyEvent("orders/2345"))
	p.until("what was searched for", `document.querySelector('#counts').textContent === '1 of 5000 names'`)
	p.shows("its row", ".row .name", "2345")
	p.run(chromedp.KeyEvent(kb.Escape))
	p.until("all names again", `document.querySelector('#counts').textContent === '5000 names'`)
	acquire(t, m, "a name before all others")
	p.until("one more", `document.querySelector('#counts').textContent === '5001 names'`)
	drawn := eval[float64](p, `(() => { const t = performance.now(); document.querySelector('#waited').dispatchEvent(new Event('change')); return performance.now() - t; })()`)
	t.Logf("drawn anew in %.0f ms", drawn)
	p.until("the waits, and the list again", `(document.querySelector('#by-waits').click(), document.querySelector('#by-name').click(), document.querySelectorAll('#space .row').length > 5)`)
	// A page that is opened now gets all of it at once.
	p.run(chromedp.Reload())
	p.until("all names after a reload", `document.querySelector('#counts').textContent === '5001 names' && document.querySelector('#live').textContent === 'live'`)
	p.shoot("many", 1280, 800)
	p.quiet()
}

// Texts that others chose are texts: no element, no script and no trick with characters
// comes out of them.
func TestHostileTextsDoNothing(t *testing.T) {
	p := open(t, true)
	m := p.manager()
	texts := []string{
		`<img src=x onerror="window.hacked=1">`, `<script>window.hacked=1</script>`, `"><svg onload=window.hacked=1>`, `javascript:window.hacked=1`,
		`__proto__`, `constructor`, `a'b"c&amp;d`, "turned \u202etxt.exe", "hidden\u200bspace", "{{7*7}}${7*7}", "//", " ",
	}
	for _, text := range texts {
		acquire(t, m, text, fabric.WithOwner("owner "+text), fabric.WithMetadata(map[string]string{text: text, "m": text}))
	}
	elements := `document.querySelectorAll('#app img, #app script, #app svg, #app iframe').length`
	before := eval[int](p, elements)
	p.shows("all of them", "#counts", fmt.Sprintf("%d names", len(texts)))
	for _, text := range texts {
		hash, err := json.Marshal(text)
		if err != nil {
			t.Fatal(err)
		}
		p.until("open", fmt.Sprintf(`(location.hash = '#name=' + encodeURIComponent(%s), true)`, hash))
		p.until("details of "+text, fmt.Sprintf(`(show => document.querySelector('#details-name').textContent === show && [...document.querySelectorAll('#details dd')].filter(d => d.textContent === show).length >= 2)(%s.replace(/[\u202e\u200b]|^ | $/g, c => '\\u{' + c.charCodeAt(0).toString(16) + '}'))`, hash))
	}
	p.until("the list by process", `(document.querySelector('#by-process').click(), document.querySelectorAll('.row').length > 5)`)
	if after := eval[int](p, elements); after != before {
		t.Errorf("%d elements came out of texts", after-before)
	}
	if eval[bool](p, `'hacked' in window || document.body.innerText.includes('\u202e')`) {
		t.Error("a text did something")
	}
	p.shoot("hostile", 1280, 800)
	p.quiet()
}

// A lock is found, opened and taken away without a mouse, and not before it was confirmed.
func TestReleaseByKeyboard(t *testing.T) {
	p := open(t, true)
	m := p.manager()
	l := acquire(t, m, "jobs/nightly")
	other := acquire(t, m, "jobs/other")
	focused := func(what, id string) {
		t.Helper()
		p.until(what+" has the focus", fmt.Sprintf(`document.activeElement.matches(%q)`, id))
	}
	p.shows("both", "#counts", "2 names")
	p.run(chromedp.KeyEvent("/"), chromedp.KeyEvent("nightly"))
	p.shows("one", "#counts", "1 of 2 names")
	p.run(chromedp.KeyEvent(kb.ArrowDown))
	focused("the list", "#list")
	p.run(chromedp.KeyEvent(kb.End), chromedp.KeyEvent(kb.Enter))
	focused("the details", "#details-name")
	p.shows("the button", "#details button", "Take away")
	for range 10 { // past the other buttons
		if eval[bool](p, `document.activeElement.matches('#details-body .danger')`) {
			break
		}
		p.run(chromedp.KeyEvent(kb.Tab))
	}
	focused("the button", "#details-body .danger")
	// Enter once more would do nothing: the way out has the focus.
	p.run(chromedp.KeyEvent(kb.Enter))
	focused("Cancel", "#release-cancel")
	p.shoot("release", 1280, 800)
	p.run(chromedp.KeyEvent(kb.Enter))
	p.until("closed", `!document.querySelector('#release').open`)
	if err := l.Err(); err != nil {
		t.Fatalf("taken away though it was not confirmed: %v", err)
	}
	p.until("the button again", `(document.querySelector('#details-body .danger').focus(), true)`)
	p.run(chromedp.KeyEvent(kb.Enter))
	focused("Cancel", "#release-cancel")
	p.run(chromedp.KeyEvent(kb.Tab))
	focused("the last button", "#release-do")
	p.run(chromedp.KeyEvent(kb.Enter))
	select {
	case <-l.Lost():
	case <-p.ctx.Done():
		t.Fatalf("never taken away: the page says %q", eval[string](p, `document.querySelector('#release-error').textContent`))
	}
	p.shows("that it is free", "#details-body", "Not in use")
	p.run(chromedp.KeyEvent(kb.Escape))
	p.until("the details are closed", `document.querySelector('#details').hidden`)
	focused("the list", "#list")
	if err := other.Err(); err != nil {
		t.Errorf("the other one: %v", err)
	}
	p.quiet()
}

// Without the right there is no button, and after the logout nothing is left to see.
func TestWithoutTheRight(t *testing.T) {
	p := open(t, false)
	acquire(t, p.manager(), "k")
	p.until("open", `(location.hash = '#name=k', true)`)
	p.shows("details", "#details-body", "token")
	if n := eval[int](p, `document.querySelectorAll('#details-body button').length`); n != 0 {
		t.Errorf("%d buttons", n)
	}
	if eval[bool](p, `location.href.includes('token') || document.cookie !== ''`) {
		t.Error("the token or the cookie can be read")
	}
	p.quiet()
	p.until("logged out", `(document.querySelector('#logout').click(), true)`)
	p.until("the form", `!document.querySelector('#login').hidden && document.querySelector('#app').hidden && document.querySelectorAll('.row .name').length === 0`)
	p.shoot("login", 390, 844)
}

// Two wait for a third one; then there is a circle, whose names are hostile; then nothing any more.
func TestWhoWaitsForWhom(t *testing.T) {
	p := open(t, true)
	m := p.manager(fabric.WithDeadlockDelay(0))
	for _, key := range []string{"by-name", "by-process"} {
		p.until(key+" has the focus", fmt.Sprintf(`(document.querySelector('#%s').focus(), true)`, key))
		p.run(chromedp.KeyEvent(kb.ArrowRight))
	}
	p.until("the tab is chosen by keys", `document.activeElement.id === 'by-waits' && document.activeElement.getAttribute('aria-selected') === 'true'`)
	p.shows("that nobody waits", "#no-waits", "Nobody who holds something")
	last := acquire(t, m, "stock/c", fabric.WithOwner("carol"))
	waits := make(chan error, 2)
	for _, who := range []string{"alice", "bob"} {
		mine := acquire(t, m, "stock/of "+who, fabric.WithOwner(who))
		go func() {
			l, err := m.Acquire(p.ctx, "stock/c", fabric.WithOwner(who))
			if err == nil {
				err = errors.Join(l.Release(p.ctx), mine.Release(p.ctx))
			}
			waits <- err
		}()
	}
	p.shows("alice", ".unit", "alice")
	p.shows("bob", ".unit", "bob")
	p.shows("carol, who does not wait", ".unit", "carol is not known to wait")
	p.until("arrows: both wait for carol, one behind the other", `document.querySelectorAll('#graph path.head').length === 3`)
	p.run(chromedp.KeyEvent(kb.Tab), chromedp.KeyEvent(kb.Tab))
	p.until("a name has the focus", `document.activeElement.matches('#units button')`)
	p.run(chromedp.KeyEvent(kb.Enter))
	p.shows("its details", "#details-name", "stock/c")
	p.shoot("waits", 1280, 800)
	p.run(chromedp.KeyEvent(kb.Escape))
	free(t, last)
	for range 2 {
		if err := <-waits; err != nil {
			t.Error(err)
		}
	}
	p.shows("that nobody waits any more", "#no-waits", "Nobody who holds something")

	elements := `document.querySelectorAll('#app img, #app script, #app iframe').length`
	before := eval[int](p, elements)
	p.fake.waits.Store(circle([]string{`<img src=x onerror="window.hacked=1">`, `"><svg onload=window.hacked=1>`, "turned \u202etxt.exe"}))
	p.shows("the deadlock", "#deadlocks", "is about to give up")
	p.shows("a name as a text", ".unit.bad", "<img src=x")
	p.until("red arrows", `document.querySelectorAll('#graph path.head.bad').length === 3`)
	p.shoot("deadlock", 1280, 800)
	p.shoot("deadlock-phone", 390, 844)
	p.until("it fits a phone", `document.documentElement.scrollWidth <= innerWidth && document.querySelector('#waits').scrollWidth <= innerWidth`)
	if eval[bool](p, `'hacked' in window || document.body.innerText.includes('\u202e')`) || eval[int](p, elements) != before {
		t.Error("a text did something")
	}
	p.fake.waits.Store(&fabric.Waits{Units: []fabric.WaitingUnit{}, Deadlocks: [][]fabric.DeadlockEdge{}})
	p.until("it is cleared", `!document.querySelector('#deadlocks li, .unit, #graph path')`)
	p.quiet()
}

// circle is a deadlock of units with these owners, each of which holds a lock of its own name.
func circle(owners []string) *fabric.Waits {
	w := &fabric.Waits{Deadlocks: [][]fabric.DeadlockEdge{{}}}
	for i, owner := range owners {
		next := (i + 1) % len(owners)
		id := func(i int) string { return fmt.Sprintf("lease%d.1", i) }
		w.Units = append(w.Units, fabric.WaitingUnit{
			Unit: fmt.Sprint("u", i), Owner: owner, Host: owner, PID: 7, Label: owner, Holds: []string{id(i)},
			Waits: []fabric.UnitWait{{Key: owners[next], ID: fmt.Sprintf("lease%d.2", i), Mode: fabric.Exclusive, Blockers: []fabric.Blocker{{ID: id(next), Owner: owners[next], Mode: fabric.Exclusive}}}},
		})
		w.Deadlocks[0] = append(w.Deadlocks[0], fabric.DeadlockEdge{Unit: fmt.Sprint("u", i), Owner: owner, Host: owner, Waits: owners[next], Holder: id(next)})
	}
	return w
}

// Pictures of what there is to see, at three sizes.
func TestScreenshots(t *testing.T) {
	p := open(t, true)
	m := p.manager()
	for _, key := range []string{"photos/2026/summer", "photos/2026/winter", "photos/2027/spring", "photos", "jobs/nightly-backup", "jobs/report", "orders/42", "orders/43", "cache"} {
		acquire(t, m, key, fabric.WithMetadata(map[string]string{"job": key, "build": "v1.42.0"}), fabric.WithOwner("worker of "+key))
	}
	ctx, cancel := context.WithCancel(p.ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for range 3 {
		wg.Go(func() { _, _ = m.Acquire(ctx, "jobs/report") })
	}
	acquire(t, m, "stock", fabric.WithMode(fabric.Shared))
	acquire(t, m, "stock", fabric.WithMode(fabric.Shared))
	p.shows("three waiters", ".row .waiting", "3")
	p.until("open", `(location.hash = '#name=jobs%2Freport', true)`)
	p.shows("details", "#details", "Waiting (3)")
	p.shoot("wide", 1280, 800)
	p.shoot("phone-details", 390, 844)
	p.until("close", `(document.querySelector('#close').click(), true)`)
	p.shoot("phone", 390, 844)
	p.shoot("middle", 900, 700)
	p.quiet()
}

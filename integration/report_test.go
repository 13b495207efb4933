package integration

import (
	"bytes"
	"errors"
	"fmt"
	"image"
	"image/png"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"exitgate/integration/prober"
	"exitgate/integration/rig"
)

// pageFaults lists what is wrong with a page as it is shown: what sticks out, what is too faint to read (WCAG 2, 4.5 to 1 for text), what
// has no size, and what was fetched.
const pageFaults = `(() => {
  const faults = [], wide = innerWidth;
  const say = (e, what) => faults.push(e.tagName.toLowerCase() + (e.id ? '#' + e.id : '') + ' "' + e.textContent.trim().slice(0, 40) + '" ' + what);
  if (document.documentElement.scrollWidth > wide) faults.push('the page is ' + document.documentElement.scrollWidth + ' wide in a window of ' + wide);
  const rgb = c => (c.match(/[\d.]+/g) || []).map(Number);
  const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b };
  const behind = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length == 3 || c[3] > 0) return c.slice(0, 3) } return [255, 255, 255] };
  for (const e of document.body.querySelectorAll('*')) {
    const box = e.getBoundingClientRect(), style = getComputedStyle(e);
    if (style.clipPath !== 'none' || e.closest('thead') && getComputedStyle(e.closest('thead')).clipPath !== 'none') continue;
    if (box.width && box.right > wide + 1) say(e, 'ends at ' + box.right + ' of ' + wide);
    if (e.tagName == 'SECTION' && (box.width < 100 || box.height < 40)) say(e, 'is not visible');
    if (e.closest('svg') || ![...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim())) continue;
    const a = light(rgb(style.color)), b = light(behind(e)), ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) say(e, 'has contrast ' + ratio.toFixed(2));
  }
  for (const r of performance.getEntriesByType('resource')) faults.push('fetched ' + r.name);
  return faults;
})()`

// views are how the page is looked at.
var views = []struct {
	name, scheme  string
	width, height int
}{
	{"light wide", "light", 1280, 900}, {"dark wide", "dark", 1280, 900}, {"light narrow", "light", 360, 740}, {"dark narrow", "dark", 360, 740},
}

func browser(t *testing.T) *rig.Browser {
	t.Helper()
	dir, err := os.MkdirTemp("", "browser")
	if err != nil {
		t.Fatal(err)
	}
	// Its helpers may write for a moment after it was killed.
	t.Cleanup(func() { rig.Eventually(patience, func() bool { return os.RemoveAll(dir) == nil }) })
	b, err := rig.NewBrowser(dir)
	if errors.Is(err, rig.ErrNoBrowser) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// written is a file with a page, as an address.
func written(t *testing.T, page string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "report.html")
	if err := os.WriteFile(path, []byte(page), 0o600); err != nil {
		t.Fatal(err)
	}
	return "file://" + path
}

// TestReportLooksRight: the live report, seen in a browser that has no network, in light and dark, wide and narrow.
func TestReportLooksRight(t *testing.T) {
	t.Parallel()
	b := browser(t)
	page := eventfulReport(t)
	address := written(t, page)
	brightness := make(map[string]float64)
	for _, v := range views {
		if err := b.Show(address, v.scheme, v.width, v.height); err != nil {
			t.Fatal(err)
		}
		var faults []string
		if err := b.Evaluate(pageFaults, &faults); err != nil || len(faults) > 0 {
			t.Errorf("%s: %v\n%s", v.name, err, strings.Join(faults, "\n"))
		}
		var sections []string
		if err := b.Evaluate(`[...document.querySelectorAll('section')].map(s => s.id)`, &sections); err != nil {
			t.Error(err)
		}
		if want := []string{"when", "denied", "hosts", "tokens", "gate"}; !slices.Equal(sections, want) {
			t.Errorf("%s: sections %v, want %v", v.name, sections, want)
		}
		picture := photograph(t, b, v.name)
		brightness[v.name] = bright(picture)
		sectionsHaveInk(t, b, v.name, picture)
	}
	if brightness["light wide"] < 0.8 || brightness["dark wide"] > 0.25 {
		t.Errorf("brightness %v: light is to be light, and dark dark", brightness)
	}
	readable(t, b)
	t.Run("control", func(t *testing.T) { faultsAreFound(t, b, page) })
}

// photograph takes the page's picture; EXITGATE_PICTURES is a directory to keep it in.
func photograph(t *testing.T, b *rig.Browser, name string) image.Image {
	t.Helper()
	data, err := b.Picture()
	if err != nil {
		t.Fatal(err)
	}
	if dir := os.Getenv("EXITGATE_PICTURES"); dir != "" {
		if err := os.WriteFile(filepath.Join(dir, strings.ReplaceAll(name, " ", "-")+".png"), data, 0o644); err != nil {
			t.Error(err)
		}
	}
	p, err := png.Decode(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// bright is the mean brightness, 0 black.
func bright(p image.Image) float64 {
	var sum, n float64
	r := p.Bounds()
	for y := r.Min.Y; y < r.Max.Y; y += 3 {
		for x := r.Min.X; x < r.Max.X; x += 3 {
			r, g, b, _ := p.At(x, y).RGBA()
			sum += float64(r+g+b) / (3 * 0xffff)
			n++
		}
	}
	return sum / n
}

// colours counts the different ones in a part of a picture.
func colours(p image.Image, part image.Rectangle) int {
	seen := make(map[[3]uint32]bool)
	part = part.Intersect(p.Bounds())
	for y := part.Min.Y; y < part.Max.Y; y++ {
		for x := part.Min.X; x < part.Max.X; x++ {
			r, g, b, _ := p.At(x, y).RGBA()
			seen[[3]uint32{r, g, b}] = true
		}
	}
	return len(seen)
}

// sectionsHaveInk: where a section stands, the picture is not blank.
func sectionsHaveInk(t *testing.T, b *rig.Browser, name string, p image.Image) {
	t.Helper()
	var boxes []struct {
		ID         string
		X, Y, W, H float64
	}
	const where = `[...document.querySelectorAll('section')].map(s => { const r = s.getBoundingClientRect(); return {ID: s.id, X: r.x, Y: r.y + scrollY, W: r.width, H: r.height} })`
	if err := b.Evaluate(where, &boxes); err != nil {
		t.Fatal(err)
	}
	for _, box := range boxes {
		part := image.Rect(int(box.X), int(box.Y), int(box.X+box.W), int(box.Y+box.H))
		if n := colours(p, part); n < 8 {
			t.Errorf("%s: section %s at %v of a picture of %v has %d colours", name, box.ID, part, p.Bounds(), n)
		}
	}
}

// readable: what a screen reader is told of.
func readable(t *testing.T, b *rig.Browser) {
	t.Helper()
	var tree struct {
		Nodes []struct {
			Ignored    bool
			Role, Name struct{ Value any }
		}
	}
	if err := b.Call("Accessibility.getFullAXTree", nil, &tree); err != nil {
		t.Fatal(err)
	}
	roles := make(map[string]int)
	for _, n := range tree.Nodes {
		if !n.Ignored {
			roles[fmt.Sprint(n.Role.Value)]++
		}
	}
	for role, least := range map[string]int{"banner": 1, "navigation": 1, "main": 1, "contentinfo": 1, "region": 5, "heading": 6, "table": 4, "columnheader": 15, "image": 1} {
		if roles[role] < least {
			t.Errorf("%d of the role %q, want at least %d: %v", roles[role], role, least, roles)
		}
	}
}

// faultsAreFound: the checks above see what they look for.
func faultsAreFound(t *testing.T, b *rig.Browser, page string) {
	for bad, want := range map[string]string{
		`<p style="width: 3000px">wide</p>`: "ends at", `<p style="color: #999; background: #fff">faint</p>`: "contrast", `<section></section>`: "is not visible",
		`<img src="nothing.png">`: "fetched",
	} {
		broken := strings.Replace(page, "<main>", "<main>"+bad, 1)
		if err := b.Show(written(t, broken), "light", 1280, 900); err != nil {
			t.Fatal(err)
		}
		var faults []string
		if err := b.Evaluate(pageFaults, &faults); err != nil {
			t.Fatal(err)
		}
		if found := strings.Join(faults, "\n"); !strings.Contains(found, want) {
			t.Errorf("with %s: %q", bad, found)
		}
	}
	if err := b.Show("about:blank", "light", 1280, 900); err != nil {
		t.Fatal(err)
	}
	if p := photograph(t, b, "blank"); colours(p, p.Bounds()) >= 8 {
		t.Error("an empty page has colours")
	}
}

// eventfulReport is the page of a gate that has seen a bit of everything.
func eventfulReport(t *testing.T) string {
	w := world(t)
	model := http.NewServeMux()
	model.Handle("/", rig.Standard())
	model.HandleFunc("POST /v1/messages", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"type":"message","usage":{"input_tokens":1200,"output_tokens":340,"cache_read_input_tokens":56789,"cache_creation_input_tokens":12}}`)
	})
	upstream(t, w, "api.example.com", rig.Server{Handler: model})
	upstream(t, w, "files.example.com", rig.Server{})
	g := up(t, w, basic)
	for i := range 12 {
		if r := g.do(get(fmt.Sprintf("/big?n=%d", 1000*i))); r.Status != 200 {
			t.Fatalf("control: %s", r)
		}
		if r := g.do(prober.Probe{Op: "http", Address: listener, Data: head("DELETE", "/v1/files/a-rather-long-name-"+strings.Repeat("x", 80), listener)}); r.Status != 403 {
			t.Fatalf("a denied request: %s", r)
		}
	}
	if r := g.do(prober.Probe{Op: "http", Address: listener, Data: append(head("POST", "/v1/messages", listener, "Content-Length: 2"), "{}"...)}); r.Status != 200 {
		t.Fatalf("control: %s", r)
	}
	g.do(tunnel("files.example.com"))
	for _, name := range []string{"statsig.anthropic.com", "pypi.org", "pypi.org"} {
		g.do(tunnel(name))
	}
	g.do(prober.Probe{Op: "tcp", Address: "1.1.1.1:443"})
	if out := g.reload(basic + "  - host: more.example.com\n"); out.Code != 0 {
		t.Fatalf("reload: %s", out.Stderr)
	}
	if out := g.reload(basic + "nonsense\n"); out.Code != 1 {
		t.Fatalf("a reload that fails: %d %s", out.Code, out.Stderr)
	}
	var page string
	eventually(t, "the report has it all", func() bool {
		out := g.exitgate("report")
		if page = out.Stdout; out.Code != 0 {
			t.Fatal(out.Stderr)
		}
		return strings.Contains(page, "1.1.1.1") && strings.Contains(page, "policy refused") && strings.Contains(page, `id="tokens"`)
	})
	if strings.Contains(page, secret) {
		t.Error("the report has the credential in it")
	}
	return page
}

package policy

import (
	"net/url"
	"path"
	"strings"
	"testing"
)

func TestMatchPath(t *testing.T) {
	for _, c := range []struct {
		pattern string
		in, out []string
	}{
		{"/", []string{"/"}, []string{"/a", "/a/"}},
		{"/v1/models", []string{"/v1/models", "/v1/%6dodels", "/%76%31/models"}, []string{"/v1/models/", "/v1/model", "/v1/modelss", "/V1/models", "/v1", "/x/v1/models", "/v1/models/x"}},
		{"/v1/models/", []string{"/v1/models/"}, []string{"/v1/models", "/v1/models/x"}},
		{"/v1/models/*", []string{"/v1/models/a", "/v1/models/%41", "/v1/models/*", "/v1/models/a:b"}, []string{"/v1/models", "/v1/models/", "/v1/models/a/", "/v1/models/a/b"}},
		{"/*/x", []string{"/a/x"}, []string{"/x", "/a/b/x", "/a/x/"}},
		{"/**", []string{"/", "/a", "/a/", "/a/b/c"}, nil},
		{"/a/**", []string{"/a", "/a/", "/a/b", "/a/b/c/"}, []string{"/", "/ab", "/b/a"}},
		{"/**/x", []string{"/x", "/a/x", "/x/x", "/a/b/x"}, []string{"/", "/x/", "/ax", "/x/y"}},
		{"/**/info/refs", []string{"/info/refs", "/a/b.git/info/refs", "/info/info/refs"}, []string{"/info/refs/x", "/a/info/a/refs", "/a/infox/refs"}},
		{"/a/**/b/**/c", []string{"/a/b/c", "/a/x/b/y/z/c", "/a/b/b/c/c", "/a/c/b/c"}, []string{"/a/c", "/a/b", "/a/c/b", "/b/c"}},
		{"/**/*", []string{"/a", "/a/b"}, []string{"/", "/a/"}},
		{"/*/**", []string{"/a", "/a/b", "/a/"}, []string{"/"}},
		{"/lit%2Astar", []string{"/lit*star", "/lit%2astar", "/lit%2Astar"}, []string{"/litXstar"}},
		{"/%2A", []string{"/*", "/%2a"}, []string{"/a", "/**"}},
		{"/café", []string{"/caf%c3%a9", "/caf%C3%A9"}, []string{"/cafe", "/caf%e9"}},
		{"/a=b&c+d@e:f", []string{"/a=b&c+d@e:f", "/a%3Db%26c%2Bd%40e%3af"}, []string{"/a=b&c%20d@e:f"}},
		{"/a%20b", []string{"/a%20b"}, []string{"/a+b", "/ab"}},
	} {
		p, err := parsePattern("GET " + c.pattern)
		if err != nil {
			t.Fatal(err)
		}
		e := newRouteEntry(&Route{Name: "r", Path: "/", Allow: []Pattern{p}}, 1)
		for _, in := range c.in {
			if m, _ := e.match("GET", in, ""); m == nil {
				t.Errorf("%s does not match %s", c.pattern, in)
			}
			if m, _ := e.match("HEAD", in, ""); m != nil {
				t.Errorf("HEAD %s is matched by GET %s", in, c.pattern)
			}
		}
		for _, out := range c.out {
			if m, _ := e.match("GET", out, ""); m != nil {
				t.Errorf("%s matches %s", c.pattern, out)
			}
		}
	}
}

// TestMatchCost: the worst pattern and path take steps, not years.
func TestMatchCost(t *testing.T) {
	p, err := parsePattern("GET /" + strings.Repeat("**/a/", 400) + "b")
	if err != nil {
		t.Fatal(err)
	}
	if p.matchPath(strings.Repeat("/a", 4000)) {
		t.Error("it matches")
	}
	if !p.matchPath(strings.Repeat("/a", 4000) + "/b") {
		t.Error("its neighbour does not match")
	}
}

func TestPathFault(t *testing.T) {
	for _, good := range []string{"/", "/a", "/a/", "/a.b", "/.a", "/a.", "/...", "/.../x", "/..a", "/a..b", "/%41", "/a%20b", "/caf%C3%A9", "/%F0%9F%98%80", "/~a-b_c!$&'()*+,=:@", "/a%2Bb", "/%E2%82%AC", "/v1beta/models/g:stream*(x)!$&'+,=~_-", "/%e2%80%ae", "/.well-known/x", "/a/.b/..c"} {
		if why := pathFault(good); why != "" {
			t.Errorf("%s %s", good, why)
		}
	}
	for _, c := range []struct{ path, want string }{
		{"", "slash"}, {"a", "slash"}, {"*", "slash"}, {"http://a/", "slash"},
		{"//", "empty segment"}, {"//evil.example/", "empty segment"}, {"/a//b", "empty segment"}, {"/a//", "empty segment"},
		{"/.", "dot segment"}, {"/..", "dot segment"}, {"/./a", "dot segment"}, {"/../a", "dot segment"}, {"/a/.", "dot segment"}, {"/a/..", "dot segment"}, {"/a/../b", "dot segment"}, {"/a/./b", "dot segment"},
		{"/%2e", "encoded dot"}, {"/%2E%2e/a", "encoded dot"}, {"/.%2e/a", "encoded dot"}, {"/a%2eb", "encoded dot"},
		{"/a%2fb", "encoded slash"}, {"/a%2Fb", "encoded slash"}, {"/a%5cb", "encoded backslash"}, {"/a%5C..", "encoded backslash"}, {"/a\\b", "backslash"},
		{"/a;b", "semicolon"}, {"/a;x=1/b", "semicolon"}, {"/a%3bb", "encoded semicolon"},
		{"/a%252fb", "percent"}, {"/a%25", "percent"}, {"/a%", "broken"}, {"/a%2", "broken"}, {"/a%zz", "broken"}, {"/a%2g", "broken"}, {"/%u002f", "broken"},
		{"/a%00", "control"}, {"/a%0d%0a", "control"}, {"/a%1b", "control"}, {"/a%7f", "control"}, {"/a\x00", "raw"}, {"/a b", "raw"}, {"/a\tb", "raw"}, {"/a\rb", "raw"}, {"/é", "raw"}, {"/a\x7f", "raw"},
		{"/a#b", "raw"}, {"/a?b", "raw"}, {"/a%23b", "encoded #"}, {"/a%3fb", "encoded #"}, {"/a%3Fb", "encoded #"},
		{"/a\"b", "raw"}, {"/a<b", "raw"}, {"/a|b", "raw"}, {"/a^b", "raw"}, {"/a`b", "raw"}, {"/{a}", "raw"}, {"/[a]", "raw"},
		{"/%c0%af", "UTF-8"}, {"/%c0%ae%c0%ae/", "UTF-8"}, {"/%e0%80%af", "UTF-8"}, {"/%ff", "UTF-8"}, {"/%c3", "UTF-8"}, {"/%c3/%a9", "UTF-8"}, {"/%ed%a0%80", "UTF-8"}, {"/%f4%90%80%80", "UTF-8"},
	} {
		if why := pathFault(c.path); !strings.Contains(why, c.want) {
			t.Errorf("%q: %q, want %q", c.path, why, c.want)
		}
	}
}

const upload = "service=git-upload-pack"

func TestCondition(t *testing.T) {
	p, err := parsePattern("GET /x?" + upload)
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range []string{upload, "a=1&" + upload, upload + "&a=1&b", "&" + upload, upload + "&", "service=git%2Dupload-pack", "%73ervice=git-upload-pack", "servicex=git-receive-pack&" + upload, "xservice=1&" + upload, upload + "&a=%zz", upload + "&a=b+c"} {
		if f, c := p.queryFault(q); f != queryMeets {
			t.Errorf("?%s: %s", q, f.explain(c))
		}
	}
	for _, c := range []struct {
		query string
		want  queryFault
	}{
		{"", queryAbsent}, {"a=1", queryAbsent}, {"servicex=git-upload-pack", queryAbsent},
		{"service", queryOther}, {"service=", queryOther}, {"service=git-receive-pack", queryOther}, {"service=git-upload-packx", queryOther}, {"service=git-upload-pac", queryOther}, {"service=%67it-receive-pack", queryOther},
		{"Service=git-upload-pack", queryOther}, {"service=git-upload-pack%00", queryOther}, {"service=git-upload-pack%20", queryOther}, {"service=git-upload-pack+", queryOther}, {"service=git%zzupload-pack", queryOther}, {"service=git-upload-pack=x", queryOther},
		{upload + "&" + upload, queryTwice}, {upload + "&service=git-receive-pack", queryTwice}, {"service=git-receive-pack&" + upload, queryTwice}, {upload + "&%73ervice=git-receive-pack", queryTwice}, {upload + "&SERVICE=git-receive-pack", queryTwice},
		{upload + "&service[]=git-receive-pack", queryTwice}, {upload + "&service%5B0%5D=git-receive-pack", queryTwice}, {upload + "&+service=git-receive-pack", queryTwice}, {upload + "&%20service=git-receive-pack", queryTwice}, {upload + "&service%20=git-receive-pack", queryTwice}, {upload + "&service", queryTwice},
		{upload + ";service=git-receive-pack", querySemicolon}, {"a;" + upload, querySemicolon},
		{upload + "&%2573ervice=git-receive-pack", queryTwoWays}, {upload + "&service%00x=git-receive-pack", queryTwoWays}, {upload + "&%zz=1", queryTwoWays}, {upload + "&%c1%b3ervice=git-receive-pack", queryTwoWays}, {upload + "&%=1", queryTwoWays},
	} {
		f, cond := p.queryFault(c.query)
		if f != c.want || f.explain(cond) == "" {
			t.Errorf("?%s: fault %d (%s), want %d", c.query, f, f.explain(cond), c.want)
		}
	}
	two, err := parsePattern("GET /x?b=2&a=1%20x")
	if err != nil {
		t.Fatal(err)
	}
	for q, want := range map[string]queryFault{"a=1%20x&b=2": queryMeets, "b=2&c&a=1%20x": queryMeets, "a=1+x&b=2": queryOther, "a=1%20x": queryAbsent, "b=2": queryAbsent, "a=1%20x&b=3": queryOther} {
		if f, c := two.queryFault(q); f != want {
			t.Errorf("?%s: %s", q, f.explain(c))
		}
	}
	plus, err := parsePattern("GET /x?b=%2B")
	if err != nil {
		t.Fatal(err)
	}
	for q, want := range map[string]queryFault{"b=%2B": queryMeets, "b=+": queryOther} {
		if f, c := plus.queryFault(q); f != want {
			t.Errorf("?%s: %s", q, f.explain(c))
		}
	}
	under, err := parsePattern("GET /x?a.b=1")
	if err != nil {
		t.Fatal(err)
	}
	if f, _ := under.queryFault("a.b=1&a_b=2"); f != queryTwice {
		t.Error("a_b is another spelling of a.b to PHP")
	}
}

// FuzzPath: a path that is allowed has one reading: cleaning and decoding it
// change nothing that decides, and its one spelling is allowed as well.
func FuzzPath(f *testing.F) {
	for _, s := range []string{"/a/b", "/a/../b", "/a/%2e%2e/b", "/a%2fb", "//a", "/a;x", "/a/%61", "/a/%C3%A9", "/a\\b", "/a/%c0%af", "/a/..%2f", "/a/./", "/.../a", "/a/%", "/a/%25", "/a%3fb", "/a/{x}"} {
		f.Add(s)
	}
	p, err := Load("policy.yaml", []byte("version: 1\nroutes:\n  - {name: r, path: /, upstream: \"https://a.example\", allow: [\"GET /a/**\", \"GET /b/*/c\"]}\n"))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d := p.Decide(Request{Road: RoadRoute, Method: "GET", Path: s})
		if strings.ContainsAny(d.Message(), "\x00\n\r\x1b") {
			t.Fatalf("message %q", d.Message())
		}
		if !d.Allow {
			return
		}
		if u, err := url.ParseRequestURI(s); err != nil || u.EscapedPath() != s && u.RawPath != "" || u.RawQuery != "" {
			t.Fatalf("%q is allowed, and net/url reads it as %#v, %v", s, u, err)
		}
		plain, err := url.PathUnescape(s)
		if err != nil {
			t.Fatalf("%q is allowed and does not decode", s)
		}
		if again, err := url.PathUnescape(plain); err != nil || again != plain {
			t.Fatalf("%q is allowed and decodes twice", s)
		}
		if clean := path.Clean(plain); clean != strings.TrimSuffix(plain, "/") || strings.Count(plain, "/") != strings.Count(s, "/") || strings.ContainsAny(plain, "\\;?#\x00") {
			t.Fatalf("%q is allowed and is cleaned to %q", s, clean)
		}
		if !strings.HasPrefix(plain, "/a") && !strings.HasPrefix(plain, "/b/") {
			t.Fatalf("%q is allowed", s)
		}
		segments := strings.Split(plain[1:], "/")
		for i := range segments {
			segments[i] = escapeText(segments[i], pathBytes)
		}
		if one := "/" + strings.Join(segments, "/"); !p.Decide(Request{Road: RoadRoute, Method: "GET", Path: one}).Allow {
			t.Fatalf("%q is allowed, %q is not", s, one)
		}
	})
}

// FuzzCondition: a query that is allowed says the listed value, once, to every
// way of reading it we know.
func FuzzCondition(f *testing.F) {
	for _, s := range []string{upload, upload + "&a=1", "service=%67it-receive-pack", upload + "&" + upload, upload + ";service=x", "Service=x&" + upload, upload + "&%73ervice=x"} {
		f.Add(s)
	}
	p, err := parsePattern("GET /x?" + upload)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, q string) {
		if fault, _ := p.queryFault(q); fault != queryMeets {
			return
		}
		seen := 0
		for pair := range strings.SplitSeq(q, "&") {
			k, v, _ := strings.Cut(pair, "=")
			for range 3 { // as servers that decode once, twice, three times
				key, _, _ := strings.Cut(strings.ToLower(strings.TrimSpace(k)), "[")
				if key == "service" {
					if value, err := url.QueryUnescape(v); err != nil || value != "git-upload-pack" {
						t.Fatalf("%q is allowed with the value %q", q, v)
					}
					seen++
					break
				}
				if next, err := url.QueryUnescape(k); err == nil {
					k = next
				}
			}
		}
		if seen != 1 || strings.Contains(q, ";") {
			t.Fatalf("%q is allowed with service %d times", q, seen)
		}
	})
}

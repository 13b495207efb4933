package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"exitgate/integration/rig"
)

const (
	geminiHost = "generativelanguage.googleapis.com"
	geminiKey  = "AIzaFAKE-clients-gemini-key-0123456789abc"
)

func gemini() client {
	return client{
		name: "gemini", title: "Gemini CLI", presets: "`gemini`",
		packages: []pkg{node, {name: "@google/gemini-cli", version: "0.61.0", as: "gemini"}},
		needs:    "the key in `/run/secrets/gemini`; `{\"security\":{\"auth\":{\"selectedType\":\"gemini-api-key\"}}}` in `~/.gemini/settings.json`",
		modes: func(files map[string]string) []mode {
			m := mode{
				policy: "version: 1\npresets: [gemini]\n", secrets: map[string]string{"gemini": geminiKey}, dummy: "GEMINI_API_KEY", denied: []string{"*", "play.googleapis.com"},
				place: map[string]string{"/opt/node": files["node"], "/opt/gemini": files["gemini"]},
				stand: func(s *scene) error { return s.serve(geminiHost, rig.Server{Handler: http.HandlerFunc(generate)}) },
				argv:  shell(`mkdir .gemini; echo '{"security":{"auth":{"selectedType":"gemini-api-key"}}}' >.gemini/settings.json; PATH=/opt/node/bin:$PATH node /opt/gemini/bundle/gemini.js --skip-trust --yolo -m stand-in -p "` + question + `"`),
			}
			m.judge = func(s *scene) error { return s.said(lastLine) }
			run, open := m, m
			run.name = "prompt"
			run.judge = func(s *scene) error {
				return errors.Join(s.said(lastLine), s.toolRan(geminiHost), s.sent(geminiHost, "X-Goog-Api-Key", geminiKey, "Authorization"))
			}
			open.name, open.open, open.wants, open.env = "no fence", true, []string{geminiHost}, []string{"GEMINI_API_KEY=" + geminiKey}
			return []mode{run, open}
		},
	}
}

// generate stands for the Gemini API: a call of the shell tool, then a text.
func generate(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	part := fmt.Sprintf(`{"functionCall":{"name":"run_shell_command","args":{"command":%q,"description":"say a number"}}}`, toolCommand)
	if strings.Contains(string(body), `"functionResponse"`) { // a tool that failed is not asked again
		part = fmt.Sprintf(`{"text":%q}`, lastLine)
	}
	answer := fmt.Sprintf(`{"candidates":[{"content":{"role":"model","parts":[%s]},"finishReason":"STOP","index":0}],"usageMetadata":{"promptTokenCount":5,"candidatesTokenCount":5,"totalTokenCount":10}}`, part)
	if !strings.HasSuffix(r.URL.Path, ":streamGenerateContent") {
		reply(w, answer)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	fmt.Fprintf(w, "data: %s\r\n\r\n", answer)
}

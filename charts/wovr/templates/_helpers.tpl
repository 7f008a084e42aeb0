{{- define "wovr.labels" -}}
app.kubernetes.io/name: wovr
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/part-of: wovr
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* Labels that select the pods of one part: (dict "root" . "part" "triton") */}}
{{- define "wovr.selector" -}}
app.kubernetes.io/name: wovr
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{- define "wovr.podLabels" -}}
{{ include "wovr.selector" . }}
app.kubernetes.io/part-of: wovr
{{- end }}

{{- define "wovr.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "wovr.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "wovr.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag }}
{{- end }}

{{/* Of every pod and of the pipelines' account: the chart's own, and those that a chart around this one gives to all */}}
{{- define "wovr.pullSecrets" -}}
{{- $names := .Values.image.pullSecrets }}
{{- range (.Values.global).imagePullSecrets }}
{{- $names = append $names (kindIs "map" . | ternary (dig "name" "" (kindIs "map" . | ternary . dict)) .) }}
{{- end }}
{{- with uniq $names }}
imagePullSecrets:
{{- range . }}
  - name: {{ . | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- define "wovr.s3.endpoint" -}}
{{- if eq .Values.s3.mode "minio" -}}
http://{{ .Release.Name }}-minio.{{ .Release.Namespace }}:9000
{{- else -}}
{{ .Values.s3.endpoint }}
{{- end -}}
{{- end }}

{{- define "wovr.mlflow.url" -}}
{{- if .Values.mlflow.enabled -}}
http://{{ .Release.Name }}-mlflow.{{ .Release.Namespace }}:5000
{{- else -}}
{{ .Values.mlflow.url }}
{{- end -}}
{{- end }}

{{/* A number that quantities are compared by: "1500m", "1.5", "8Gi" */}}
{{- define "wovr.quantity" -}}
{{- $factors := dict "" 1.0 "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "Pi" 1125899906842624.0 }}
{{- $unit := toString . | regexFind "[A-Za-z]*$" }}
{{- mulf (toString . | trimSuffix $unit | float64) (get $factors $unit) }}
{{- end }}

{{/* Refuses what a volume cannot become, and says nothing else:
     (dict "root" . "value" "pipelines.cache" "of" .Values.pipelines.cache "name" "wovr-cache") */}}
{{- define "wovr.volume" -}}
{{- $namespace := .root.Release.Namespace }}
{{- with lookup "v1" "PersistentVolumeClaim" $namespace .name }}
{{- $size := .spec.resources.requests.storage }}
{{- $class := dig "storageClassName" "" .spec }}
{{- if ne (include "wovr.quantity" $size) (include "wovr.quantity" $.of.storage) }}
{{- $patch := printf `{"spec": {"resources": {"requests": {"storage": "%s"}}}}` $.of.storage }}
{{- fail (printf "%s.storage is %s, and the claim %s has %s. Set that here; or enlarge the claim first, where its storage class allows it: kubectl -n %s patch pvc %s -p '%s'" $.value $.of.storage $.name $size $namespace $.name $patch) }}
{{- end }}
{{- if and $.of.storageClass (ne $.of.storageClass $class) }}
{{- fail (printf "%s.storageClass is %s, and the claim %s is of class %q for good. Set that here; or save what it holds and delete it first: kubectl -n %s delete pvc %s" $.value $.of.storageClass $.name $class $namespace $.name) }}
{{- end }}
{{- end }}
{{- end }}

{{/* A claim that stays when the release goes. One that another release left, or somebody made, is used as it is.
     (dict "root" . "value" "triton.models" "of" .Values.triton.models "name" "wovr-models" "mode" "ReadWriteMany") */}}
{{- define "wovr.claim" -}}
{{- include "wovr.volume" . }}
{{- $live := lookup "v1" "PersistentVolumeClaim" .root.Release.Namespace .name }}
{{- if or (not $live) (eq .root.Release.Name (dig "metadata" "annotations" "meta.helm.sh/release-name" "" $live)) -}}
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace | quote }}
  labels: {{- include "wovr.labels" .root | nindent 4 }}
  annotations: {helm.sh/resource-policy: keep}
spec:
  accessModes: [{{ .mode }}]
  {{- with dig "spec" "storageClassName" .of.storageClass $live }}
  storageClassName: {{ . | quote }}
  {{- end }}
  resources: {requests: {storage: {{ .of.storage }}}}
{{- end }}
{{- end }}

{{/* Ports of S3, MLflow and a database that are elsewhere, as a JSON list */}}
{{- define "wovr.portsElsewhere" -}}
{{- $ports := list }}
{{- if .Values.mlflow.database.existingSecret }}
{{- $ports = append $ports 5432 }}
{{- end }}
{{- $urls := list (eq .Values.s3.mode "external" | ternary .Values.s3.endpoint "") (.Values.mlflow.enabled | ternary "" .Values.mlflow.url) }}
{{- range compact $urls }}
{{- $port := regexFind ":[0-9]+$" (urlParse .).host | trimPrefix ":" | default (hasPrefix "https" . | ternary "443" "80") }}
{{- $ports = append $ports (atoi $port) }}
{{- end }}
{{- uniq $ports | toJson }}
{{- end }}

{{/* MLflow's login, where the Secret has one */}}
{{- define "wovr.mlflow.login" -}}
{{- range list "MLFLOW_TRACKING_USERNAME" "MLFLOW_TRACKING_PASSWORD" "MLFLOW_TRACKING_TOKEN" }}
- name: {{ . }}
  valueFrom: {secretKeyRef: {name: wovr-services, key: {{ . }}, optional: true}}
{{- end }}
{{- end }}

{{/* The variables by which S3's keys reach a container, by reference */}}
{{- define "wovr.s3.keys" -}}
- name: {{ .id }}
  valueFrom: {secretKeyRef: {name: wovr-services, key: WOVR_S3_ACCESS_KEY}}
- name: {{ .key }}
  valueFrom: {secretKeyRef: {name: wovr-services, key: WOVR_S3_SECRET_KEY}}
{{- end }}

{{/* Of the Job that makes S3's keys. A Job cannot change, so its name has this text's digest. */}}
{{- define "wovr.keys.spec" -}}
backoffLimit: 10
template:
  metadata:
    labels:
      app.kubernetes.io/part-of: wovr
      app.kubernetes.io/component: keys
      sidecar.istio.io/inject: "false"  # a Job with a sidecar never ends
  spec:
    restartPolicy: Never
    serviceAccountName: {{ .Release.Name }}-keys
    {{- include "wovr.pullSecrets" . | nindent 4 }}
    securityContext: {{- include "wovr.podSecurity" . | nindent 6 }}
    containers:
      - name: keys
        image: {{ include "wovr.image" . | quote }}
        imagePullPolicy: {{ .Values.image.pullPolicy }}
        command: [python, -m, components.platform.keys]
        securityContext: {{- include "wovr.containerSecurity" . | nindent 10 }}
        resources: {requests: {cpu: 50m, memory: 128Mi}, limits: {memory: 512Mi}}
        volumeMounts: [{name: tmp, mountPath: /tmp}]
    volumes: [{name: tmp, emptyDir: {}}]
{{- end }}

{{- define "wovr.labels" -}}
app.kubernetes.io/name: wovr
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: wovr
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* Labels that select the pods of one part: (dict "root" . "part" "triton") */}}
{{- define "wovr.selector" -}}
app.kubernetes.io/name: wovr
app.kubernetes.io/instance: {{ .root.Release.Name }}
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

{{- define "wovr.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
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

{{/* A volume claim: (dict "root" . "name" "models" "mode" "ReadWriteMany" "of" .Values.triton.models) */}}
{{- define "wovr.claim" -}}
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "wovr.labels" .root | nindent 4 }}
  annotations: {helm.sh/resource-policy: keep}
spec:
  accessModes: [{{ .mode }}]
  {{- with .of.storageClass }}
  storageClassName: {{ . }}
  {{- end }}
  resources: {requests: {storage: {{ .of.storage }}}}
{{- end }}

{{/* The variables by which S3's keys reach a container, by reference */}}
{{- define "wovr.s3.keys" -}}
- name: {{ .id }}
  valueFrom: {secretKeyRef: {name: wovr-services, key: WOVR_S3_ACCESS_KEY}}
- name: {{ .key }}
  valueFrom: {secretKeyRef: {name: wovr-services, key: WOVR_S3_SECRET_KEY}}
{{- end }}
